"""Cells that compete: random ones, or those of several searches, each trained briefly; the best is kept."""

from typing import Any

from dartsfast.candidates.config import RandomCNNConfig, SelectCNNConfig

__all__ = ["Candidate", "CandidatesResult", "RandomCNNConfig", "SelectCNNConfig", "random_cnn", "select_cnn"]


def __getattr__(name: str) -> Any:
    # The options can be read without the packages that a training needs.
    if name in ("random_cnn", "select_cnn"):
        from dartsfast.candidates import cnn

        return getattr(cnn, name)
    if name in ("Candidate", "CandidatesResult"):
        from dartsfast.candidates import compete

        return getattr(compete, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
