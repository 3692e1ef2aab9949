"""``locked_linear_`` and its gradients in their documented order; see ``csrc/cpu/locked_linear.kernel.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.oracle import gemm
from dartsfast.oracle.arithmetic import fma


def locked_linear_(out: Tensor, x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Return what becomes of ``out`` [N, T, V]."""
    sums = torch.zeros_like(out)
    for n, s in enumerate(sums):
        for k in mask[n].nonzero()[:, 0]:
            s.copy_(fma((x[:, n, k] * mask[n, k])[:, None].expand_as(s), weight[k].expand_as(s), s))
    return sums


def locked_linear_input_gradient_(d_x: Tensor, g: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Return what becomes of ``d_x`` [T, N, H]."""
    found = torch.zeros_like(d_x)
    for n, factors in enumerate(mask):
        kept = factors.nonzero()[:, 0]
        product = gemm.gemm_(found.new_empty(len(d_x), len(kept)), g[n], weight[kept].T, False)
        found[:, n, kept] = product * factors[kept]
    return found


def locked_linear_weight_gradient_(d_weight: Tensor, g: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Return what becomes of ``d_weight`` [H, V]."""
    found = d_weight.clone()
    for n, k in mask.nonzero():
        for t in range(len(x)):
            found[k] = fma((x[t, n, k] * mask[n, k]).expand_as(found[k]), g[n, t], found[k])
    return found
