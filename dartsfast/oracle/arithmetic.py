"""What the ordered oracles share: fused multiply-add and the reductions of ``csrc/order.h``.

The bits are those of the kernels for float32. For float64 the multiply-add is rounded twice, so
float64 results agree to rounding only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

INTERLEAVE = 8
CHUNK_PIXELS = 64
BELOW_MIDWAY = (1 << 28) - 1
"""Of the 29 bits that float64 has below float32's last, all but the first."""


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a * b + c, rounded once where the tensors are float32.

    The product of two float32 is exact in float64, and its sum with c is rounded twice: there, and to
    float32. Only where the first rounding ends midway between two float32 can one give another number.
    """
    if a.dtype == torch.float64:
        return a * b + c
    a, b, c = a.double(), b.double(), c.double()
    total = torch.addcmul(c, a, b)
    rounded = total.float()
    # Midway every bit but the one below float32's last is 0, subnormal or not, or the number is beyond them.
    midway = (total.view(torch.int64) & BELOW_MIDWAY == 0) & (rounded != total)
    if midway.any() and (midway := midway & ~total.isnan()).any():  # NaN looks as if it were
        a, b, c = (t[midway] for t in torch.broadcast_tensors(a, b, c))
        rounded[midway] = _to_odd(a * b, c).float()
    return rounded


def _to_odd(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b rounded to odd, which keeps what a second rounding has to know.

    (Boldo and Melquiond 2008.)
    """
    total = a + b
    # The error of the sum (Knuth's TwoSum); it is 0 where the sum is exact.
    part = total - a
    error = (a - (total - part)) + (b - part)
    bits = total.view(torch.int64)
    inexact = (error != 0) & total.isfinite() & (bits & 1 == 0)
    away_from_zero = (error > 0) == (total > 0)
    odd = bits + torch.where(away_from_zero, 1, -1)
    return torch.where(inexact, odd, bits).view(torch.float64)


def relu(x: Tensor) -> Tensor:
    """Return ``x`` with 0 for what is negative; NaN stays."""
    return torch.where(x < 0, torch.zeros_like(x), x)


def apply_coef(g: Tensor, z: Tensor | None, coef: Tensor | None) -> Tensor:
    """Return dz = ((g - m) - (z - mu) * r) * k for coef [4, C] = m, mu, r, k; ``g`` without coef."""
    if coef is None or z is None:
        return g
    m, mu, r, k = coef.unbind()
    return ((g - m) - (z - mu) * r) * k


def tree_sum(rows: Tensor) -> Tensor:
    """Sum over dimension 0 pairwise, neighbours first; an odd one out waits for the next level."""
    while len(rows) > 1:
        pairs = len(rows) // 2 * 2
        rows = torch.cat([rows[:pairs:2] + rows[1:pairs:2], rows[pairs:]])
    return rows[0]


class Chunks:
    """The chunks that images of [N, H, W] pixels are reduced in: whole rows, about 64 pixels each.

    A chunk's pixels stand in ``steps`` groups of 8: tiles are [N * chunks, steps, 8, C]. Chunks at
    the bottom of an image may be shorter; the pixels that they lack are left out of every sum.
    """

    def __init__(self, N: int, H: int, W: int) -> None:
        self.rows = 1 if W >= CHUNK_PIXELS else CHUNK_PIXELS // W
        self.count = -(-H // self.rows)
        self.steps = -(-self.rows * W // INTERLEAVE)
        self.lacking = self.count * self.rows - H
        pixels = torch.full([self.count], self.rows * W)
        pixels[-1] -= self.lacking * W
        self.pixels = pixels.repeat(N)
        place = torch.arange(self.steps * INTERLEAVE).reshape(self.steps, INTERLEAVE)
        self.there = (place < self.pixels[:, None, None]).unsqueeze(-1)

    def split(self, image: Tensor) -> Tensor:
        """Return the tiles of an image batch [N, H, W, C]."""
        N, _, W, C = image.shape
        tiles = F.pad(image, [0, 0, 0, 0, 0, self.lacking]).reshape(N * self.count, self.rows * W, C)
        tiles = F.pad(tiles, [0, 0, 0, self.steps * INTERLEAVE - self.rows * W])
        return tiles.reshape(N * self.count, self.steps, INTERLEAVE, C)

    def sum(self, tiles: Tensor) -> Tensor:
        """Return the sum of every chunk, [N * chunks, C]."""
        return self._interleaved(tiles, lambda step, s: s + tiles[:, step])

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the sum of a * b of every chunk, [N * chunks, C], by fused multiply-add."""
        return self._interleaved(a, lambda step, s: fma(a[:, step], b[:, step], s))

    def _interleaved(self, tiles: Tensor, add: Callable[[int, Tensor], Tensor]) -> Tensor:
        s = torch.zeros_like(tiles[:, 0])
        for step in range(self.steps):
            s = torch.where(self.there[:, step], add(step, s), s)
        s = s[:, ::2] + s[:, 1::2]
        s = s[:, ::2] + s[:, 1::2]
        return s[:, 0] + s[:, 1]


def moments(z: Tensor) -> Tensor:
    """Return mean and biased variance over the pixels of [N, H, W, C] as [2, C] (Chan et al. 1979)."""
    chunks = Chunks(*z.shape[:3])
    tiles, pixels = chunks.split(z), chunks.pixels
    mean = chunks.sum(tiles) / pixels[:, None].to(z.dtype)
    deviation = tiles - mean[:, None, None]
    squares = chunks.dot(deviation, deviation)
    while len(pixels) > 1:
        pairs = len(pixels) // 2 * 2
        first, second = slice(0, pairs, 2), slice(1, pairs, 2)
        both = pixels[first] + pixels[second]
        share = (pixels[second].to(z.dtype) / both.to(z.dtype))[:, None]
        weight = pixels[first, None].to(z.dtype) * share
        d = mean[second] - mean[first]
        joint_squares = fma(d * d, weight, squares[first] + squares[second])
        joint_mean = fma(d, share, mean[first])
        mean = torch.cat([joint_mean, mean[pairs:]])
        squares = torch.cat([joint_squares, squares[pairs:]])
        pixels = torch.cat([both, pixels[pairs:]])
    total = z.shape[0] * z.shape[1] * z.shape[2]
    return torch.stack([mean[0], squares[0] / torch.tensor(total, dtype=z.dtype)])
