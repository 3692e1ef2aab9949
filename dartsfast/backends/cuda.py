"""Loads the kernels for CUDA in C++, which then serve the operators on NVIDIA's GPUs.

They are a library of their own that nothing else loads. Where it is there its operators serve the process;
``DARTSFAST_BACKEND=triton`` has the Triton kernels serve instead, ``cuda`` refuses to do without it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from dartsfast.errors import InputError

LIBRARY = Path(__file__).parents[1] / "_cuda.abi3.so"
CHOICES = ("cuda", "triton")


def built() -> bool:
    """Whether the library is there: who installs without it has not asked for it."""
    return LIBRARY.exists()


@functools.cache
def load() -> str | None:
    """Load the library once; return None, or why it cannot be used.

    Raises:
        InputError: ``DARTSFAST_BACKEND`` is none of :data:`CHOICES`, or ``cuda`` where it cannot be used.
    """
    wanted = os.environ.get("DARTSFAST_BACKEND")
    if wanted not in (None, *CHOICES):
        raise InputError(f"DARTSFAST_BACKEND must be one of {', '.join(CHOICES)}, got {wanted!r}")
    if wanted == "triton":
        return "DARTSFAST_BACKEND=triton is set"
    reason = _load()
    if reason is not None and wanted == "cuda":
        raise InputError(f"DARTSFAST_BACKEND=cuda cannot be had: {reason}")
    return reason


def _load() -> str | None:
    if not built():
        return "its kernels were not built: `DARTSFAST_BUILD=cuda` builds them, with nvcc"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no NVIDIA GPU is at hand"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the library does not load: {error}"
    return None


def description() -> str:
    """Return the version of CUDA that torch, and with it the library, runs on."""
    return f"CUDA {torch.version.cuda}"
