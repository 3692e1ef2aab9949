"""How far two backends are from each other: part by part of a first pass, then iteration by iteration.

Both run the same search from the same weights on the same data, which are seeded random numbers: what is
compared is arithmetic, not learning.
"""

from importlib import import_module
from typing import Any

from dartsfast.compare.config import CompareConfig, CompareRNNConfig

_MODULES = {
    "Distance": "measure",
    "compare_cnn": "cnn",
    "compare_rnn": "rnn",
    "distance": "measure",
    "print_comparison": "show",
    "write_comparison": "show",
}

__all__ = ["CompareConfig", "CompareRNNConfig", *_MODULES]


def __getattr__(name: str) -> Any:
    # The options can be read without importing torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dartsfast.compare.{_MODULES[name]}"), name)
