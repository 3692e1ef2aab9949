"""``gemm_`` in its documented order of operations; see ``csrc/cpu/gemm.kernel.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.oracle.arithmetic import fma

DEPTH = 320


def gemm_(out: Tensor, a: Tensor, b: Tensor, accumulate: bool) -> Tensor:
    """Return what becomes of ``out`` [M, N]: a @ b, or that added to it."""
    total = out if accumulate else None
    for left, right in zip(a.split(DEPTH, 1), b.split(DEPTH), strict=True):
        s = torch.zeros_like(out)
        for k in range(left.shape[1]):
            s = fma(left[:, k, None].expand_as(s), right[k].expand_as(s), s)
        total = s if total is None else total + s
    assert total is not None
    return total
