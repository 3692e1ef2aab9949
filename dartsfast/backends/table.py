"""Which backends there are, which can run here, and why the others cannot.

``reference`` is the networks on stock PyTorch modules. The others run the same mathematics on fused
kernels and register themselves here; ``auto`` takes the first of :data:`PREFERENCE` that is
available for the device and says why it passed over others.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dartsfast.backends import cuda, native, triton
from dartsfast.errors import InputError
from dartsfast.names import BACKENDS, MEMORY_MODES
from dartsfast.sizes import is_size

PREFERENCE = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
    "xpu": ("triton", "reference"),
}
KERNEL_DTYPES = (torch.float32, torch.float64)
STORAGE_DTYPES = (torch.bfloat16, torch.float16)
STORING = ("cpu", "cuda", "triton")
"""The backends that store images as one of those."""
NOT_TRACED = (
    "torch.jit.trace and torch.export do not see what its kernels compute; "
    "they take the reference path and the networks of found cells"
)


class _Here(threading.local):
    """What passes for available in this thread."""

    pretended: str | None = None


_here = _Here()


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine, and the reason in words."""

    backend: str
    available: bool
    reason: str


def availability(
    backend: str, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Availability:
    """Say whether ``backend`` (one of :data:`BACKENDS`) can run here, on tensors of ``device``, and why.

    Raises:
        InputError: unknown name.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}: choose one of auto, {', '.join(BACKENDS)}")
    if backend == _here.pretended:
        return Availability(backend, True, "nothing is computed on it")
    if backend == "reference":
        return Availability(backend, True, f"stock PyTorch modules on torch {torch.__version__}")
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return Availability(backend, False, NOT_TRACED)
    if dtype not in KERNEL_DTYPES:
        return Availability(backend, False, f"its kernels take float32 and float64, not {dtype}")
    libraries: dict[str, Callable[[], str | None]] = {"cpu": native.load, "cuda": cuda.load}
    missing = libraries.get(backend, triton.missing)()
    if missing is not None:
        return Availability(backend, False, missing)
    served = triton.DEVICES if backend == "triton" else (backend,)
    if device is not None and torch.device(device).type not in served:
        return Availability(
            backend, False, f"its kernels take tensors on {' or '.join(served)}, not {device}"
        )
    if backend == "triton":
        return Availability(backend, True, f"Triton kernels, {triton.description()}")
    if backend == "cuda":
        return Availability(backend, True, f"C++ kernels, {cuda.description()}")
    return Availability(backend, True, f"C++ kernels, {torch.ops.dartsfast.cpu_instruction_set()}")


def resolve_backend(
    backend: str, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """Turn a request into the name of a backend that computes on ``device``; None: the CPU, for ``auto``.

    An explicit request that cannot be met raises and says why. ``auto`` takes the first of
    :data:`PREFERENCE` that is available, and warns of each that it passes over, with the reason.

    Raises:
        InputError: unknown name, or a backend that is not available here.
    """
    if backend != "auto":
        found = availability(backend, device, dtype)
        if not found.available:
            raise InputError(
                f"backend {backend!r} is not available: {found.reason}. "
                "Use backend='auto' or 'reference', and run `dartsfast doctor` for the whole table"
            )
        return backend
    for found in candidates(device or "cpu", dtype):
        if found.available:
            return found.backend
        _warn_of_unused(found.backend, found.reason)
    raise AssertionError("the reference path runs everywhere")


@functools.cache  # once a process, not once for every place that asks
def _warn_of_unused(backend: str, reason: str) -> None:
    warnings.warn(f"backend {backend} not used: {reason}", stacklevel=3)


# For torch.compile, which would look for the extension's file in its graph: the same for the same arguments.
resolve_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def pretending(backend: str) -> Iterator[None]:
    """Let ``backend`` pass for available within the block, in this thread, where nothing is computed."""
    before, _here.pretended = _here.pretended, backend
    try:
        yield
    finally:
        _here.pretended = before


def candidates(device: str | torch.device, dtype: torch.dtype = torch.float32) -> list[Availability]:
    """Return the backends that ``auto`` considers for ``device``, the one it would rather take first.

    Not ``cuda`` where nobody had it built.
    """
    names = PREFERENCE.get(torch.device(device).type, ("reference",))
    return [availability(name, device, dtype) for name in names if name != "cuda" or cuda.built()]


def check_storage(storage_dtype: torch.dtype | None, backend: str) -> torch.dtype | None:
    """Return ``storage_dtype`` if ``backend`` (as resolved where the network will lie) can keep images as it.

    None for float32: that is how images are kept where nothing else is said.

    Raises:
        InputError: not a dtype that images are stored as, or one that a backend given by name cannot store.
    """
    resolve_backend(backend)
    if storage_dtype not in (None, torch.float32, *STORAGE_DTYPES):
        raise InputError(f"storage_dtype must be None, bfloat16 or float16, got {storage_dtype}")
    if storage_dtype in STORAGE_DTYPES and backend not in (*STORING, "auto"):
        raise InputError(
            f"backend {backend!r} keeps images in the network's own dtype: "
            f"storage_dtype={storage_dtype} needs the backend {', '.join(STORING[:-1])} or {STORING[-1]}"
        )
    return storage_dtype if storage_dtype in STORAGE_DTYPES else None


def check_memory(memory: str, modes: Sequence[str] = MEMORY_MODES, *, budget: bool = False) -> str:
    """Return ``memory`` if it is one of ``modes``, or where a ``budget`` serves a size.

    Raises:
        InputError: it is neither.
    """
    if memory in modes or (budget and is_size(memory)):
        return memory
    sizes = ", or a budget such as 800MB, 6GB or 50% of what is free" if budget else ""
    raise InputError(f"unknown memory mode {memory!r}: choose one of {', '.join(modes)}{sizes}")
