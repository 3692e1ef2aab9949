"""Which backends there are, which can run here, and why the others cannot.

``reference`` is the networks on stock PyTorch modules. The others run the same mathematics on fused
kernels and register themselves here; ``auto`` takes the first of :data:`PREFERENCE` that is
available for the device and keeps the reasons of those it passed over.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from dartsfast import native
from dartsfast.errors import InputError

BACKENDS = ("reference", "cpu", "cuda", "triton")
PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}
MEMORY_MODES = ("store", "recompute")


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine, and the reason in words."""

    backend: str
    available: bool
    reason: str


def availability(backend: str) -> Availability:
    """Say whether ``backend`` (one of :data:`BACKENDS`) can run here and why.

    Raises:
        InputError: unknown name.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}: choose one of auto, {', '.join(BACKENDS)}")
    if backend == "reference":
        return Availability(backend, True, f"stock PyTorch modules on torch {torch.__version__}")
    if backend == "cpu":
        missing = native.load()
        found = "C++ kernels, " + ("" if missing else torch.ops.dartsfast.cpu_instruction_set())
        return Availability(backend, missing is None, missing or found)
    return Availability(backend, False, f"this version of dartsfast has no {backend} kernels yet")


def resolve_backend(backend: str, device: str | torch.device = "cpu") -> str:
    """Turn a request into the name of a backend that runs on ``device``.

    An explicit request that cannot be met raises and says why. ``auto`` takes the first of
    :data:`PREFERENCE` that is available; :func:`passed_over` says why it is not an earlier one.

    Raises:
        InputError: unknown name, or a backend that is not available here.
    """
    if backend != "auto":
        found = availability(backend)
        if not found.available:
            raise InputError(
                f"backend {backend!r} is not available: {found.reason}. "
                "Use backend='auto' or 'reference', and run `dartsfast doctor` for the whole table"
            )
        return backend
    return next(found.backend for found in _candidates(device) if found.available)


def passed_over(device: str | torch.device = "cpu") -> list[Availability]:
    """Return the backends that ``auto`` would rather use on ``device`` but cannot, with the reasons."""
    return list(itertools.takewhile(lambda found: not found.available, _candidates(device)))


def _candidates(device: str | torch.device) -> list[Availability]:
    return [availability(name) for name in PREFERENCE.get(torch.device(device).type, ("reference",))]


def check_memory(memory: str) -> str:
    """Return ``memory`` if it names a memory mode (``store`` or ``recompute``), else raise InputError."""
    if memory not in MEMORY_MODES:
        raise InputError(f"unknown memory mode {memory!r}: choose one of {', '.join(MEMORY_MODES)}")
    return memory
