"""The decoder and its cross entropy, a few rows of logits at a time; the slowness of what is decoded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.ops.contract import Function, eager, once_differentiable, require

kernels = torch.ops.dartsfast


@eager
def linear_cross_entropy(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    chunk: int,
    ignored: int | None = None,
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
        ignored: a label, not one of these, that is left out of the mean, without a wait for a device; where
            there is no other the mean is NaN.

    Raises:
        InputError: no rows.
    """
    require(len(rows) > 0, "the mean over no rows has no value")
    if ignored is None:
        return _LinearCrossEntropy.apply(rows, weight, bias, labels, None, chunk)
    known = labels != ignored
    loss = _LinearCrossEntropy.apply(rows, weight, bias, labels.masked_fill(~known, 0), known, chunk)
    return loss * (len(rows) / known.sum(dtype=loss.dtype))


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        known: Tensor | None,
        chunk: int,
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
            losses = kernels.cross_entropy_(logits, bias, labels[part], 1 / len(rows))
            if known is not None:
                losses = losses.where(known[part], 0)
                logits.masked_fill_(~known[part, None], 0)
            total += losses.sum()
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
        return *(_scaled(d, g) for d in ctx.saved_tensors[:3]), None, None, None


def _scaled(d: Tensor | None, g: Tensor) -> Tensor | None:
    """Return d * g, in memory that is used again."""
    return None if d is None else torch.mul(d, g, out=kernels.empty(d, d.shape))


@eager
def locked_cross_entropy(
    x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
) -> Tensor:
    """Return the mean negative log-likelihood of ``labels`` under (x * mask) @ weight.T + bias.

    What the mask drops takes no part in any product: of dropout of three quarters, a quarter is multiplied.
    Otherwise as :func:`linear_cross_entropy`.

    Args:
        x: [T, N, H], float32 or float64, before locked dropout.
        mask: [N, H], 0 for what is dropped, else a factor; it has no gradient.
        weight: [V, H].
        bias: [V], or None.
        labels: [T, N], int64, from 0 to V - 1.
        chunk: rows of logits; at least the T of one batch element are held.

    Raises:
        InputError: no rows.
    """
    require(x.numel() > 0, "the mean over no rows has no value")
    return _LockedCrossEntropy.apply(x, mask, weight, bias, labels, chunk)


class _LockedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
    ) -> Tensor:
        of_x, _, of_weight, of_bias, *_ = ctx.needs_input_grad
        (T, N), V = labels.shape, len(weight)
        batch = max(1, chunk // T)
        transposed = kernels.empty(x, [weight.shape[1], V]).copy_(weight.T)
        d_transposed = kernels.empty(x, transposed.shape).zero_() if of_weight else None
        d_x = kernels.empty(x, x.shape) if of_x else None
        d_bias = x.new_zeros(V) if of_bias else None
        total = x.new_zeros(())
        buffer = kernels.empty(x, [min(batch, N), T, V])
        for first in range(0, N, batch):
            part = slice(first, first + batch)
            inputs, kept = x[:, part], mask[part]
            logits = buffer[: len(kept)]
            kernels.locked_linear_(logits, inputs, kept, transposed)
            rows, of_rows = logits.flatten(0, 1), labels[:, part].T.flatten()
            total += kernels.cross_entropy_(rows, bias, of_rows, 1 / labels.numel()).sum()
            if d_x is not None:
                kernels.locked_linear_input_gradient_(d_x[:, part], logits, kept, transposed)
            if d_transposed is not None:
                kernels.locked_linear_weight_gradient_(d_transposed, logits, inputs, kept)
            if d_bias is not None:
                d_bias += rows.sum(0)
        # In the memory of the weight's copy, which has served.
        d_weight = None if d_transposed is None else transposed.view(weight.shape).copy_(d_transposed.T)
        ctx.save_for_backward(d_x, d_weight, d_bias, x, weight, bias)
        return total / labels.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_weight, d_bias = (_scaled(d, g) for d in ctx.saved_tensors[:3])
        return d_x, None, d_weight, d_bias, None, None


@eager
def slowness(outputs: Tensor) -> Tensor:
    """Return the mean square of what changes from one time step to the next, of ``outputs`` [T, B, H], T > 1.

    Temporal activation regularization (Merity et al., 2017), the bits of
    ``(outputs[1:] - outputs[:-1]).pow(2).mean()`` and of its gradient, which keeps a copy of the outputs and
    makes four more.
    """
    return _Slowness.apply(outputs)


class _Slowness(Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor) -> Tensor:
        ctx.save_for_backward(outputs)
        return (outputs[1:] - outputs[:-1]).pow_(2).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (outputs,) = ctx.saved_tensors
        change = (outputs[1:] - outputs[:-1]).mul_(2)
        change *= g / change.numel()
        grad = kernels.empty(outputs, outputs.shape)
        torch.neg(change[0], out=grad[0])
        torch.sub(change[:-1], change[1:], out=grad[1:-1])
        grad[-1] = change[-1]
        return grad
