"""The device that an option names."""

from __future__ import annotations

import torch

from dartsfast import ranks
from dartsfast.errors import InputError


def resolve_device(device: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names; of several ranks this one's.

    Raises:
        InputError: no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and ranks.size() > 1 and torch.cuda.is_available():
        return torch.device(device, torch.cuda.current_device())
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from error
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not supported: use auto, cpu, cuda or cuda:N")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} is not here (CUDA devices: {torch.cuda.device_count()}): use --device cpu"
        )
    return found


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` says that there is no more memory: that of kernels, or torch's."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "DefaultCPUAllocator: can't allocate memory" in str(error)
