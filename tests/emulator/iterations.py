"""Iterations of small searches, run as a program: ``iterations.py FILE NETWORK...`` keeps what they leave."""

import itertools
import sys

import torch

from bench.peers import Peer
from bench.workloads import WORKLOADS

if __name__ == "__main__":
    found = {}
    for network, dtype, order, memory in itertools.product(
        sys.argv[2:], (torch.float32, torch.float64), (1, 2), ("store", "recompute")
    ):
        workload = WORKLOADS[network]
        iteration = workload.iteration(Peer("cpu", memory=memory), workload.quick, dtype)
        figures = iteration.loss_and_gradients()
        iteration.run(order)
        model = iteration.model
        left = [*figures, *model.state_dict().values(), *model.arch_parameters()]
        found[network, dtype, order, memory] = [t.detach().clone() for t in left]
    torch.save(found, sys.argv[1])
