"""dartsfast: differentiable architecture search (DARTS, Liu et al., ICLR 2019) on fused kernels.

The names of the field live in :mod:`dartsfast.cnn` and :mod:`dartsfast.rnn`; the bilevel engine in
:mod:`dartsfast.bilevel`; whole searches in :mod:`dartsfast.search`. Nothing is imported before it
is asked for, so ``import dartsfast`` costs no more than ``import torch``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dartsfast")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
