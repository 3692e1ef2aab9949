"""Small networks on the device, both searches, both orders: right, and the same bits whichever way they run.

In float64, where nothing but the order of sums differs, values and gradients equal those of the stock modules
and of the CPU kernels to rounding. In float32 a rounding can flip a relu, so that the bound is wide: the
distances are shown beside those of the CPU kernels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from bench.gpu.cases import ORDERS, small_size
from bench.gpu.graphs import WARM_UP, capturable, playing, recorded
from bench.gpu.stage import Check
from bench.peers import REFERENCE, Iteration, Peer, Workload, flat
from bench.workloads import WORKLOADS
from dartsfast.backends import availability

HOST = torch.device("cpu")
# Largest distance in the Euclidean norm, relative. Second order takes a difference of gradients over 2 R.
ROUNDING = {1: 1e-11, 2: 1e-10}  # float64
FLIPPED = 2e-2  # float32
ITERATIONS = WARM_UP + 2  # until bits are compared, of which two are replays


def run(check: Check) -> None:
    """Check both networks; a row a comparison."""
    # Products in one workspace: in a graph cuBLAS else takes another, and may add up in another order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with playing(check.rehearse):
        for network, workload in WORKLOADS.items():
            for order in ORDERS:
                _right(check, network, workload, order)
                _same(check, network, workload, order)


def peer(check: Check, **options: Any) -> Peer:
    """Return how the device computes."""
    return Peer(check.backend, **options)


def _right(check: Check, network: str, workload: Workload, order: int) -> None:
    """Compare values and gradients of an iteration in float64 and float32."""
    reference, size = workload.peers[REFERENCE], small_size(network, rehearse=check.rehearse)
    truth = figures(workload.iteration(reference, size, torch.float64), order)
    for dtype, bound in ((torch.float64, ROUNDING[order]), (torch.float32, FLIPPED)):
        label = str(dtype).removeprefix("torch.")
        ours = figures(workload.iteration(peer(check), size, dtype, check.place), order)
        row = {"distance": distance(ours, truth)}
        if availability("cpu").available:
            kernels = figures(workload.iteration(Peer("cpu"), size, dtype), order)
            row |= {"cpu_kernels": distance(kernels, truth), "from_cpu_kernels": distance(ours, kernels)}
        check.row(network=network, order=order, what=label, bound=bound, **row)
        for what in ("distance", "from_cpu_kernels"):
            if not row.get(what, 0.0) <= bound:  # NaN is wrong too
                check.fail(f"{network}, order {order}, {label}: {what} is {row[what]:.2g}, at most {bound:g}")


def figures(iteration: Iteration, order: int) -> list[Tensor]:
    """Return the training loss, then the gradients of alphas and weights in an iteration; float64, CPU."""
    loss = iteration.train_loss().detach()
    iteration.run(order)
    gradients = [
        flat(tuple(p.grad for p in group if p.grad is not None))
        for group in (iteration.model.arch_parameters(), list(iteration.model.parameters()))
    ]
    return [t.to(HOST, torch.float64) for t in (loss, *gradients)]


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest distance of a tensor, relative to its Euclidean norm."""
    pairs = zip(found, wanted, strict=True)
    return max(((a - b).norm() / b.norm()).nan_to_num(torch.inf).item() for a, b in pairs)


def _same(check: Check, network: str, workload: Workload, order: int) -> None:
    """Compare the bits of all that iterations moved: kept, computed again, and from a recording."""
    size = small_size(network, rehearse=check.rehearse)
    eager = workload.iteration(peer(check), size, device=check.place)
    capturable(eager)
    for _ in range(ITERATIONS):
        eager.run_in_place(order)
    wanted = state(eager)
    again = workload.iteration(peer(check, memory="recompute"), size, device=check.place)
    capturable(again)
    for _ in range(ITERATIONS):
        again.run_in_place(order)
    captured = workload.iteration(peer(check), size, device=check.place)
    replay = recorded(captured, order, check.place)
    replay()
    for what, other in (("recompute equals store", again), ("captured equals eager", captured)):
        differing = [name for name, value in state(other).items() if not torch.equal(value, wanted[name])]
        check.row(network=network, order=order, what=what, tensors=len(wanted), differing=len(differing))
        if differing:
            check.fail(
                f"{network}, order {order}: {what} not in {differing[0]} and {len(differing) - 1} more"
            )


def state(iteration: Iteration) -> dict[str, Tensor]:
    """Return weights, buffers and alphas."""
    return {name: value.detach().clone() for name, value in iteration.model.state_dict().items()}
