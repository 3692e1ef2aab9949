"""Loads the Triton kernels, which then serve the operators on GPUs.

With ``TRITON_INTERPRET=1`` in the environment they serve CPU tensors instead, through Triton's
interpreter: slow, for checking them where there is no GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dartsfast.backends import cuda, selfcheck
from dartsfast.backends.contracts import CONTRACTS
from dartsfast.errors import InputError

INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
DEVICES = ("cpu",) if INTERPRETED else ("cuda", "xpu")


_loading = threading.Lock()


def load() -> str | None:
    """Register the kernels once; return None, or why they cannot be used."""
    with _loading:  # what is registered twice raises
        return _load()


@functools.cache
def _load() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}): it comes with torch's builds for GPUs"
    from dartsfast.kernels import OPERATORS

    # On NVIDIA's GPUs what is written in C++ serves where it was built.
    devices = [device for device in DEVICES if device != "cuda" or cuda.load() is not None]
    for name, fill in OPERATORS.items():
        for device in devices:
            torch.library.impl(f"dartsfast::{name}", device)(_operator(name, fill))
    return None


def missing() -> str | None:
    """Return None where a device for the kernels is at hand and they load, else why they cannot be used."""
    if not INTERPRETED and not torch.cuda.is_available() and not torch.xpu.is_available():
        return "no GPU is at hand (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, to check them)"
    if not INTERPRETED and not torch.xpu.is_available() and cuda.load() is None:
        return "the kernels for CUDA in C++ serve this process (DARTSFAST_BACKEND=triton has these serve)"
    return load()


def description() -> str:
    """Return Triton's version and what runs the kernels."""
    import triton

    return f"Triton {triton.__version__}{', interpreted on the CPU' if INTERPRETED else ''}"


def _operator(name: str, fill: Callable[..., None]) -> Callable[..., Any]:
    def operator(*args: Any) -> Any:
        tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
        out = CONTRACTS[name](*args)
        selfcheck.require(name, tensors[0].device)
        for t in (*tensors, *(t for t in tree_leaves(out) if isinstance(t, Tensor))):
            if (
                t.numel() >= 2**31
                or sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) >= 2**31
            ):
                raise InputError(
                    f"the kernels index up to 2^31 elements, got {list(t.shape)}: use a smaller batch"
                )
        with on(tensors[0].device):
            fill(out, *args)
        return out

    return operator


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which kernels are launched on ``device``."""
    if device.type not in ("cuda", "xpu"):
        return contextlib.nullcontext()
    return torch.get_device_module(device).device(device)
