"""From genotype to result: a found cell trained from scratch, and tested."""

from importlib import import_module
from typing import Any

from dartsfast.train.config import TestCNNConfig, TestRNNConfig, TrainCNNConfig, TrainRNNConfig

# The options can be read without the packages that a training needs: these are imported when asked for.
_HOMES = {
    "TestResult": "evaluate",
    "TextTestResult": "evaluate_rnn",
    "TrainResult": "result",
    "test_cnn": "evaluate",
    "test_rnn": "evaluate_rnn",
    "train_cnn": "cnn",
    "train_rnn": "rnn",
}

__all__ = [
    "TestCNNConfig",
    "TestRNNConfig",
    "TestResult",
    "TextTestResult",
    "TrainCNNConfig",
    "TrainRNNConfig",
    "TrainResult",
    "test_cnn",
    "test_rnn",
    "train_cnn",
    "train_rnn",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"dartsfast.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
