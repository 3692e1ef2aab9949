"""Whole searches: data in, genotype out, with progress, logs, pictures and checkpoints on the way."""

from typing import Any

from dartsfast.search.config import CNNConfig, RNNConfig

__all__ = ["CNNConfig", "RNNConfig", "SearchResult", "search_cnn", "search_rnn"]


def __getattr__(name: str) -> Any:
    # The options can be read without the packages that a search needs.
    if name == "search_cnn":
        from dartsfast.search.cnn import search_cnn

        return search_cnn
    if name == "search_rnn":
        from dartsfast.search.rnn import search_rnn

        return search_rnn
    if name == "SearchResult":
        from dartsfast.search.search import SearchResult

        return SearchResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
