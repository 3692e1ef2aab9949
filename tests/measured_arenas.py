"""Run as a process with TRITON_INTERPRET=1: prints budgets, planned peaks and what passes allocate, bytes.

Programs for Triton's kernels run but for their launches: their arenas and everything between them are there.
"""

import json

import torch
from dartsfast.kernels.grouped import Work
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dartsfast.backends import pretending
from dartsfast.cnn.model_search import Network
from dartsfast.fused import check
from dartsfast.fused.planning import Plan

IMAGES = (16, 3, 16, 16)


class Allocated(Plan):
    """Counts as a plan does what is made within it, while programs run."""

    __enter__ = TorchDispatchMode.__enter__
    __exit__ = TorchDispatchMode.__exit__


def network(memory):
    return Network(8, 4, 3, nn.CrossEntropyLoss(), 2, 2, backend="triton", memory=memory)


def measured(budget):
    """Return the planned peak of a budget, and that of what a pass allocates."""
    model = network(f"{budget}B")
    fit = model.fit_memory(IMAGES)
    x, labels = torch.randn(IMAGES), torch.zeros(IMAGES[0], dtype=torch.int64)
    with Allocated("triton") as allocated:
        loss = model._loss(x, labels)
        torch.autograd.grad(loss, [*model.parameters(), *model.arch_parameters()])
    return budget, fit.peak, allocated.peak


if __name__ == "__main__":
    check.require = lambda *args: None  # of kernels that compute
    Work.launch = lambda *args: None
    with pretending("triton"), torch.device("meta"):
        most = network("1GB").fit_memory(IMAGES)
    print(json.dumps([measured(most.least + (most.peak - most.least) * k // 3) for k in range(4)]))
