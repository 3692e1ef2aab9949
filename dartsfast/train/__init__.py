"""From genotype to result: a found cell trained from scratch, and tested."""

from typing import Any

from dartsfast.train.config import TestCNNConfig, TrainCNNConfig

__all__ = ["TestCNNConfig", "TestResult", "TrainCNNConfig", "TrainResult", "test_cnn", "train_cnn"]


def __getattr__(name: str) -> Any:
    # The options can be read without the packages that a training needs.
    if name in ("train_cnn", "TrainResult"):
        from dartsfast.train import cnn

        return getattr(cnn, name)
    if name in ("test_cnn", "TestResult"):
        from dartsfast.train import evaluate

        return getattr(evaluate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
