"""What passes on the kernels for CUDA allocate, emulated: prints budgets, planned peaks and those of all that
torch's allocator gave, bytes; with everything that the runner and the kernels ask it for themselves.
"""

import json

import torch
from torch import nn

from dartsfast.backends import pretending
from dartsfast.cnn.model_search import Network

IMAGES = (4, 3, 16, 16)


def network(backend, memory, storage):
    return Network(
        8, 4, 3, nn.CrossEntropyLoss(), 2, 2, backend=backend, memory=memory, storage_dtype=storage
    )


def planned(memory, storage):
    """Return how a budget is kept on CUDA."""
    with pretending("cuda"), torch.device("meta"):
        return network("cuda", memory, storage).fit_memory(IMAGES)


def allocated(call):
    """Return the most bytes that a call has of torch's allocator at a time."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measured(budget, storage):
    """Return the planned peak of a budget, and what a pass allocates."""
    fit = planned(f"{budget}B", storage)
    model = network("cpu", "store", storage)
    for cell, mode in zip(model.cells, fit.modes, strict=True):
        cell._memory = mode
    x, labels = torch.randn(IMAGES), torch.zeros(IMAGES[0], dtype=torch.int64)
    wanted = [*model.parameters(), *model.arch_parameters()]

    def run():
        torch.autograd.grad(model._loss(x, labels), wanted)

    run()  # what is there from the first pass on: programs
    return budget, fit.peak, allocated(run)


if __name__ == "__main__":
    found = []
    for storage, steps in ((None, 4), (torch.bfloat16, 2)):
        most = planned("1GB", storage)
        sizes = [most.least + (most.peak - most.least) * k // (steps - 1) for k in range(steps)]
        found += [measured(size, storage) for size in sizes]
    print(json.dumps(found))
