"""Iterations of small searches, run as a program: ``iterations.py FILE NETWORK...`` keeps what they leave.

Where images are stored in 16 bits, the kernels for CPUs, which do not store so, run operator by operator on
what was rounded.
"""

import itertools
import sys
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_map

from bench.peers import Peer
from bench.workloads import WORKLOADS
from dartsfast.backends import table
from dartsfast.fused import programs, walk
from dartsfast.oracle.arithmetic import moments

EVERY = [
    (dtype, order, memory, None)
    for dtype, order, memory in itertools.product(
        (torch.float32, torch.float64), (1, 2), ("store", "recompute")
    )
]
STORED = [
    (torch.float32, 1, "store", torch.float16),
    (torch.float32, 2, "store", torch.bfloat16),
    (torch.float32, 1, "recompute", torch.bfloat16),
]


class Rounded:
    """The kernels for CPUs, given images in 16 bits, and asked for them."""

    def __getattr__(self, name):
        kernel = getattr(torch.ops.dartsfast, name)

        return kernel if name == "empty" else lambda *args: kernel(*tree_map(as_float, args))

    def branch_conv(self, *args):
        *args, dtype = args
        z, stats = torch.ops.dartsfast.branch_conv(*tree_map(as_float, args))
        if dtype is None:
            return z, stats
        z = z.to(dtype)
        return z, torch.stack([moments(image.float()) for image in z])


def as_float(value):
    half = isinstance(value, torch.Tensor) and value.dtype in table.STORAGE_DTYPES
    return value.float() if half else value


def iterated(network, dtype, order, memory, storage):
    """Return loss, gradients, state and alphas that an iteration leaves."""
    workload = WORKLOADS[network]
    with ExitStack() as patches:
        if storage is not None:
            # The backend cpu, whose kernels may be others.
            patches.enter_context(patch.object(table, "STORING", ("cpu",)))
        if storage is not None and torch.ops.dartsfast.cpu_instruction_set() != "cuda-emulated":
            patches.enter_context(patch.object(walk, "kernels", Rounded()))
            patches.enter_context(patch.object(programs, "Native", walk.Walk))
        iteration = workload.iteration(Peer("cpu", memory, storage), workload.quick, dtype)
        figures = iteration.loss_and_gradients()
        iteration.run(order)
    model = iteration.model
    left = [*figures, *model.state_dict().values(), *model.arch_parameters()]
    return [t.detach().clone() for t in left]


if __name__ == "__main__":
    found = {}
    for network in sys.argv[2:]:
        for choice in EVERY + (STORED if network == "cnn" else []):
            found[(network, *choice)] = iterated(network, *choice)
    torch.save(found, sys.argv[1])
