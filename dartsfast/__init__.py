"""dartsfast: differentiable architecture search (DARTS, Liu et al., ICLR 2019) on fused kernels.

The names of the field live in :mod:`dartsfast.cnn` and :mod:`dartsfast.rnn`; the bilevel engine in
:mod:`dartsfast.bilevel`; whole searches in :mod:`dartsfast.search`. :func:`accelerate` and :func:`restore`
are for models of one's own. Nothing is imported before it is asked for, so ``import dartsfast`` costs no more
than ``import torch``.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("dartsfast")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in ("accelerate", "restore"):
        return getattr(import_module("dartsfast.descendants"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
