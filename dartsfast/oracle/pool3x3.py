"""``pool3x3`` in its documented order of operations; see ``csrc/cpu/pool3x3.kernel.h``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.oracle.arithmetic import apply_coef, moments


def pool3x3(x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return z [2, N, Ho, Wo, C], maximum and average, and stats [2, 2, C]."""
    most, _, mean, _ = _windows(x, stride)
    z = torch.stack([most, mean])
    return z, torch.stack([moments(image) for image in z])


def pool3x3_backward(
    g: list[Tensor], z: list[Tensor], coef: Tensor | None, x: Tensor, stride: int, base: Tensor | None
) -> Tensor:
    """Return the gradient of ``x``, on top of ``base`` where that is given."""
    N, H, W, C = x.shape
    _, place, _, pixels = _windows(x, stride)
    d_most, d_mean = (
        apply_coef(g[half], z[half] if z else None, None if coef is None else coef[half]) for half in (0, 1)
    )
    share = d_mean / pixels
    numbers = _numbers(H, W)
    total = x.new_zeros([N, H + 2, W + 2, C])
    # Windows in row-major order reach a pixel with their last tap first.
    for tap in reversed(_taps(H, W, stride)):
        most_here = torch.where(place == numbers[tap], d_most, torch.zeros_like(d_most))
        total[:, tap[0], tap[1]] += most_here + share
    total = total[:, 1:-1, 1:-1]
    return total.contiguous() if base is None else base + total


def _taps(H: int, W: int, stride: int) -> list[tuple[slice, slice]]:
    """Return the pixels of the padded image that every tap reads, row by row."""
    return [(slice(ky, ky + H, stride), slice(kx, kx + W, stride)) for ky in range(3) for kx in range(3)]


def _numbers(H: int, W: int) -> Tensor:
    """Number the pixels of the padded image."""
    return torch.arange((H + 2) * (W + 2)).reshape(H + 2, W + 2, 1)


def _windows(x: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return maximum, the number of the pixel that it came from, average, and the count of pixels."""
    H, W = x.shape[1:3]
    padded = F.pad(x, [0, 0, 1, 1, 1, 1])
    inside = F.pad(torch.ones(H, W, 1, dtype=torch.bool), [0, 0, 1, 1, 1, 1])
    numbers = _numbers(H, W)
    most = torch.full_like(x[:, ::stride, ::stride], -torch.inf)
    total = torch.zeros_like(most)
    place = torch.full_like(most, -1, dtype=torch.int64)
    count = torch.zeros_like(most[0, ..., :1])
    for tap in _taps(H, W, stride):
        v, there = padded[:, tap[0], tap[1]], inside[tap]
        better = there & ((v > most) | v.isnan())
        # The first pixel holds the maximum until a later one beats it, which nothing does to -inf.
        place = torch.where(better | (there & (place < 0)), numbers[tap], place)
        most = torch.where(better, v, most)
        total = torch.where(there, total + v, total)
        count = count + there
    return most, place, total / count, count
