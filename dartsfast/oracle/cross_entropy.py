"""``cross_entropy_`` in its documented order of operations; see ``csrc/cpu/cross_entropy.kernel.h``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.oracle.activations import decay
from dartsfast.oracle.arithmetic import tree_sum

INTERLEAVE = 32


def cross_entropy_(
    logits: Tensor, bias: Tensor | None, labels: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the losses [R], and what becomes of ``logits`` [R, V]."""
    x = logits if bias is None else logits + bias
    x = x - x.amax(1, keepdim=True)
    e, _ = decay(x)
    groups = F.pad(e, [0, -e.shape[1] % INTERLEAVE]).unflatten(1, (-1, INTERLEAVE))  # [R, groups, 32]
    sums = torch.zeros_like(groups[:, 0])
    for group in groups.unbind(1):
        sums = sums + group
    s = tree_sum(sums.T)
    at = labels[:, None]
    losses = s.double().log().to(s.dtype) - x.gather(1, at)[:, 0]
    factor = torch.tensor(scale, dtype=s.dtype)
    gradient = e * (factor / s)[:, None]
    return losses, gradient.scatter_add(1, at, (-factor).expand(at.shape))
