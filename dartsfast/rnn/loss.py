"""The decoder and its cross entropy, a few rows of logits at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.ops.contract import once_differentiable, require

kernels = torch.ops.dartsfast


def linear_cross_entropy(
    rows: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
) -> Tensor:
    """Return the mean negative log-likelihood of ``labels`` under rows @ weight.T + bias.

    At most [chunk, V] logits are held. The gradients are made on the way, each only if asked for. The bits
    do not depend on the number of threads.

    Args:
        rows: [R, H], float32 or float64.
        weight: [V, H].
        bias: [V], or None.
        labels: [R], int64, from 0 to V - 1.
        chunk: rows of logits.

    Raises:
        InputError: no rows.
    """
    require(len(rows) > 0, "the mean over no rows has no value")
    return _LinearCrossEntropy.apply(rows, weight, bias, labels, chunk)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
    ) -> Tensor:
        of_rows, of_weight, of_bias, *_ = ctx.needs_input_grad
        d_rows = rows.new_empty(rows.shape) if of_rows else None
        d_weight = rows.new_empty(weight.shape) if of_weight else None
        d_bias = rows.new_zeros(len(weight)) if of_bias else None
        total = rows.new_zeros(())
        buffer = kernels.empty(rows, [min(chunk, len(rows)), len(weight)])
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            x = rows[part]  # [r, H]
            logits = buffer[: len(x)]
            kernels.gemm_(logits, x, weight.T, False)
            # Chunk by chunk: the library splits long sums by threads.
            total += kernels.cross_entropy_(logits, bias, labels[part], 1 / len(rows)).sum()
            if d_rows is not None:
                kernels.gemm_(d_rows[part], logits, weight, False)
            if d_weight is not None:
                kernels.gemm_(d_weight, logits.T, x, first > 0)
            if d_bias is not None:
                d_bias += logits.sum(0)
        # The inputs are not read again: a derivative of the gradients by one of them must raise.
        ctx.save_for_backward(d_rows, d_weight, d_bias, rows, weight, bias)
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if d is None else d * g for d in ctx.saved_tensors[:3]), None, None
