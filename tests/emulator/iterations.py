"""Iterations of small searches, run as a program: ``iterations.py FILE NETWORK...`` keeps what they leave."""

import itertools
import sys

import torch

from bench.peers import Peer
from bench.workloads import WORKLOADS

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


def iterated(network, dtype, order, memory, storage):
    """Return loss, gradients, state and alphas that an iteration leaves."""
    workload = WORKLOADS[network]
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
