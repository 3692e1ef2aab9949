"""Sizes of memory as people write them: ``6GB``, ``800 MB``, or a share of what a device has free."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dartsfast.errors import InputError

if TYPE_CHECKING:
    import torch

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|[KMG]?i?B)\s*", re.IGNORECASE)


def is_size(text: str) -> bool:
    """Whether ``text`` is a size: above 0 with B, KB, MB, GB, KiB, MiB or GiB, or a share to 100%."""
    found = _SIZE.fullmatch(text)
    return found is not None and float(found[1]) > 0 and (found[2] != "%" or float(found[1]) <= 100)


def in_bytes(text: str, device: torch.device) -> int:
    """Return a size in bytes, a share of what ``device`` (of type cpu or cuda) has free now.

    Raises:
        InputError: a share, and nothing says what is free.
    """
    found = _SIZE.fullmatch(text)
    assert found is not None and is_size(text)
    if found[2] != "%":
        return int(float(found[1]) * UNITS[found[2].upper()])
    return int(float(found[1]) / 100 * _free(device))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError) as error:
        raise InputError(
            f"nothing says how much memory of {device} is free: give bytes, such as 6GB"
        ) from error


def in_words(size: int) -> str:
    """Return ``size`` bytes as people read them: in MB, below one in KB, below one of these in B."""
    for unit in ("MB", "KB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:,.1f} {unit}"
    return f"{size} B"
