"""``alpha_softmax`` in its documented order of operations; see ``csrc/alpha_softmax.h``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dartsfast.oracle.arithmetic import fma

# What exp takes as 0, ln 2 in two parts, and the degree of the polynomial.
_EXP = {
    torch.float32: (-87.0, 0.693359375, -2.12194440e-4, 7),
    torch.float64: (-708.0, 6.93147180369123816490e-01, 1.90821492927058770002e-10, 13),
}


def alpha_softmax(alphas: list[Tensor]) -> list[Tensor]:
    """Return softmax over the operations of every edge of every tensor."""
    return [_softmax(alpha) for alpha in alphas]


def alpha_softmax_backward(p: list[Tensor], d: list[Tensor]) -> list[Tensor]:
    """Return the gradient of every alpha, given the softmax ``p`` and its gradient ``d``."""
    return [_softmax_backward(a, b) for a, b in zip(p, d, strict=True)]


def _softmax(alpha: Tensor) -> Tensor:
    most = alpha[:, 0]
    for column in alpha.unbind(1)[1:]:
        most = torch.where((column > most) | column.isnan(), column, most)
    e = _exp_negative(alpha - most[:, None])
    total = torch.zeros_like(most)
    for column in e.unbind(1):
        total = total + column
    return e / total[:, None]


def _exp_negative(x: Tensor) -> Tensor:
    least, ln2_high, ln2_low, degree = _EXP[x.dtype]
    usual = x >= least
    r = torch.where(usual, x, torch.zeros_like(x))
    n = (r * torch.full_like(x, 1.4426950408889634) - 0.5).trunc()
    r = fma(-n, torch.full_like(x, ln2_low), fma(-n, torch.full_like(x, ln2_high), r))
    total = torch.full_like(x, 1 / math.factorial(degree))
    for i in reversed(range(degree)):
        total = fma(total, r, torch.full_like(x, 1 / math.factorial(i)))
    # 2^n is a normal number: n >= -126 (float64: -1022).
    e = total * torch.ldexp(torch.ones_like(x), n.to(torch.int32))
    return torch.where(usual, e, torch.where(x.isnan(), x, torch.zeros_like(x)))


def _softmax_backward(p: Tensor, d: Tensor) -> Tensor:
    total = torch.zeros_like(p[:, 0])
    for a, b in zip(p.unbind(1), d.unbind(1), strict=True):
        total = fma(a, b, total)
    return p * (d - total[:, None])
