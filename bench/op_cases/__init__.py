"""The operators that the suite ``ops`` times, each beside stock PyTorch functions doing the same."""

from __future__ import annotations

from bench.op_cases.case import OURS, STOCK, STOCK_LAST, WITH_SUMS, Case, Peers, Timed
from bench.op_cases.cnn import cnn_cases, pool_case
from bench.op_cases.norms import norm_cases
from bench.op_cases.rnn import rnn_cases
from bench.op_cases.vectors import vector_cases

__all__ = [
    "OURS",
    "STOCK",
    "STOCK_LAST",
    "WITH_SUMS",
    "Case",
    "Peers",
    "Timed",
    "all_cases",
    "pool_case",
]


def all_cases(batch: int, *, quick: bool = False) -> list[Case]:
    """Return every case at the sizes of the searches, the CNN's with ``batch`` images, or at a tiny one."""
    cnn = [*cnn_cases(batch, quick=quick), *norm_cases(quick=quick)]
    return [*cnn, *rnn_cases(quick=quick), *vector_cases(quick=quick)]
