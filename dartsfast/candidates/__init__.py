"""Cells that compete: random ones, or those of several searches, each trained briefly; the best is kept."""

from typing import Any

from dartsfast.candidates.config import RandomCNNConfig, RandomRNNConfig, SelectCNNConfig, SelectRNNConfig

__all__ = [
    "Candidate",
    "CandidatesResult",
    "RandomCNNConfig",
    "RandomRNNConfig",
    "SelectCNNConfig",
    "SelectRNNConfig",
    "random_cnn",
    "random_rnn",
    "select_cnn",
    "select_rnn",
]


def __getattr__(name: str) -> Any:
    # The options can be read without the packages that a training needs.
    if name in ("random_cnn", "random_rnn", "select_cnn", "select_rnn"):
        from dartsfast.candidates import cells

        return getattr(cells, name)
    if name in ("Candidate", "CandidatesResult"):
        from dartsfast.candidates import compete

        return getattr(compete, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
