"""``fd_hvp`` in its documented order of operations; see ``csrc/cpu/fd_hvp.kernel.h``.

Unlike the operators, these return what becomes of ``w``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.oracle.arithmetic import fma, tree_sum

CHUNK = 4096
INTERLEAVE = 32


def fd_norm(v: Tensor) -> Tensor:
    """Return the L2 norm of ``v`` [n] as []; for float32 every product is exact in float64."""
    chunks = F.pad(v.double(), [0, -len(v) % CHUNK]).reshape(-1, CHUNK // INTERLEAVE, INTERLEAVE)
    sums = torch.zeros_like(chunks[:, 0])
    for x in chunks.unbind(1):
        sums = fma(x, x, sums)
    return tree_sum(tree_sum(sums.T)).sqrt().to(v.dtype)


def fd_perturb_(w: Tensor, w0: Tensor, v: Tensor, norm: Tensor, r: float, sign: float) -> Tensor:
    """Return fma(sign * (r / norm), v, w0), or ``w0`` where r / norm is 0 or not finite, [n]."""
    R = _like(w, r) / norm
    if not R.isfinite() or R == 0:
        return w0.clone()
    return fma(_like(w, sign) * R, v, w0)


def fd_virtual_step_(
    w: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    scale: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Tensor:
    """Return w - lr * (momentum * momentum_buffer + weight_decay * w + scale * g), [n]."""
    step = fma(_like(w, weight_decay), w, scale * g)
    if momentum_buffer is not None:
        step = fma(_like(w, momentum), momentum_buffer, step)
    return fma(-_like(w, lr), step, w)


def fd_quotient(plus: Tensor, minus: Tensor, norm: Tensor, r: float) -> Tensor:
    """Return (plus - minus) / (2 * (r / norm)), [n]."""
    return (plus - minus) / (2 * (_like(plus, r) / norm))


def _like(tensor: Tensor, value: float) -> Tensor:
    return torch.tensor(float(value), dtype=tensor.dtype)
