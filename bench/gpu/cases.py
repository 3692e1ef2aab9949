"""What the check computes: the operators' calls of the tests, small networks, and the paper's searches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from op_calls import ORACLES, moved
from op_cases import ALPHAS, CONVS, MIXES, NODES, NORMS, POOLS, SMALL, STEPS, VECTORS, Step

from bench import cnn_peers, rnn_peers
from bench.counting import META, Counter, prepare, pretending
from bench.workloads import WORKLOADS
from dartsfast.backends import selfcheck
from dartsfast.ops.contract import CONTRACTS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of the operators' calls
ORDERS = (1, 2)
SMALL_PEERS = ("triton store", "triton recompute")
"""Of the small networks, in float32 and float64."""
PAPER_PEERS = {
    "cnn": ("triton store", "triton store bf16", "triton recompute", "triton cell"),
    "rnn": ("triton store", "triton recompute"),
}
SMALL_SIZES = {
    # The paper's channels, whose launches are the same to the compiler.
    "cnn": cnn_peers.Size(batch=4, C=16, layers=3, image=16),
    # No dropout: float32 and float64 would draw other masks.
    "rnn": rnn_peers.Size(batch=8, nhid=12, bptt=4, vocabulary=30, dropout=False),
}
REHEARSED_SIZES = {
    "cnn": cnn_peers.Size(batch=2, C=4, layers=1, image=8),
    "rnn": rnn_peers.Size(batch=4, nhid=8, bptt=3, vocabulary=20, dropout=False),
}

Call = tuple[str, tuple[Any, ...]]


def operator_cases(*, rehearse: bool) -> tuple[Any, ...]:
    """Return the cases whose operators have Triton kernels: those of the tests, or a few tiny ones."""
    if rehearse:
        return SMALL[0], SMALL[3], SMALL[5], SMALL[7], SMALL[8], STEPS[0], VECTORS[1], NORMS[1]
    return *CONVS, *POOLS, *MIXES, *ALPHAS, *NODES, *STEPS, *VECTORS, *NORMS


def small_size(network: str, *, rehearse: bool) -> Any:
    """Return the size of a small network."""
    return REHEARSED_SIZES[network] if rehearse else SMALL_SIZES[network]


def calls(case: Any, dtype: torch.dtype) -> list[Call]:
    """Return the calls of a case, on the CPU.

    None of a time step's node in half precision: what it adds to is rounded between its parts, as its oracle
    is not; the tests of its kernels hold that.
    """
    from dartsfast.kernels import OPERATORS

    if isinstance(case, Step) and dtype.itemsize < torch.float32.itemsize:
        return []

    return [(name, args) for name, args in case.calls(dtype) if name in OPERATORS]


def oracle(name: str, args: tuple[Any, ...]) -> Any:
    """Return what the ordered oracle of an operator makes of ``args``."""
    return ORACLES[name](*args)


class Program:
    """Something that launches, on tensors without values: ``launch()`` runs it.

    ``kind`` is ``operators``, ``smallest``, ``selfcheck``, ``small`` or ``paper``; ``choice`` says which: for
    operators a dtype, for networks network, peer, dtype and order.
    """

    def __init__(self, kind: str, *choice: Any) -> None:
        self.kind, self.choice = kind, choice

    def launch(self) -> None:
        """Launch all its kernels."""
        if self.kind in ("operators", "smallest", "selfcheck"):
            for name, args in self._calls():
                self._call(name, moved(args, META))
            return
        network, peer, dtype, order = self.choice
        workload = WORKLOADS[network]
        size = SMALL_SIZES[network] if self.kind == "small" else workload.size
        with pretending():
            with META:
                iteration = workload.iteration(workload.peers[peer], size, dtype, META)
            prepare(iteration)
            with Counter():
                iteration.run(order)

    def _calls(self) -> Iterator[Call]:
        if self.kind == "selfcheck":
            for name, sample in selfcheck.SAMPLES.items():
                yield name, sample(lambda *shape: torch.randn(shape))
            return
        for case in operator_cases(rehearse=self.kind == "smallest"):
            yield from calls(case, DTYPES[self.choice[0]])

    def _call(self, name: str, args: tuple[Any, ...]) -> None:
        from dartsfast.kernels import OPERATORS

        if name in OPERATORS:
            OPERATORS[name](CONTRACTS[name](*args), *args)


def programs(*, rehearse: bool) -> list[Program]:
    """Return all that the check will launch, what takes longest first; in a rehearsal a little of it."""
    if rehearse:
        return [Program("small", "cnn", "triton store", torch.float32, 1)]
    found = [
        Program("paper", network, peer, torch.float32, order)
        for order in reversed(ORDERS)
        for network, peers in PAPER_PEERS.items()
        for peer in peers
    ]
    found += [*(Program("operators", dtype) for dtype in DTYPES), Program("smallest", "float32")]
    found += [
        Program("small", network, peer, dtype, order)
        for network in WORKLOADS
        for peer in SMALL_PEERS
        for dtype in (torch.float32, torch.float64)
        for order in ORDERS
    ]
    return [*found, Program("selfcheck")]
