"""``cross_entropy_``: negative log-likelihoods of rows of logits, and their gradient in the logits' place."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.ops.contract import check_dtype, check_shape, define, not_differentiable, require


def cross_entropy_(logits: Tensor, bias: Tensor | None, labels: Tensor, scale: float) -> Tensor:
    """Return -log softmax(logits + bias) at the labels; leave ``scale`` times the gradient in ``logits``.

    Order of operations, a row: x = logits + bias; m = maximum; e = exp(x - m), that of
    ``csrc/activations.h``; s, 32 interleaved sums of e (class mod 32), ascending, folded pairwise,
    neighbours first; loss = log(s) - (x_label - m), the logarithm in float64 (CUDA's own on a GPU,
    within 1 ULP of a CPU's) and then rounded; gradient = e * (scale / s), less ``scale`` at the label. There
    is no derivative: a tensor that autograd follows is refused. Where there is no native extension stock
    functions compute the same, not to the bit.

    Args:
        logits: [R, V], contiguous, float32 or float64; its values are lost.
        bias: [V], or None.
        labels: [R], int64, from 0 to V - 1. CUDA kernels do not stop for another: the loss of its row is NaN,
            the gradient ``scale`` times the softmax.
        scale: factor of the gradient, such as 1 / R for that of the mean.

    Returns:
        [R], of the dtype of ``logits``.

    Raises:
        InputError or RuntimeError: shapes, dtypes, devices or labels that do not fit, or a tensor that
            autograd follows.
    """
    return torch.ops.dartsfast.cross_entropy_(logits, bias, labels, scale)


def _fake(logits: Tensor, bias: Tensor | None, labels: Tensor, scale: float) -> Tensor:
    require(
        logits.dim() == 2 and logits.numel() > 0 and logits.is_contiguous(),
        f"logits must be [R, V], contiguous, not empty, got {list(logits.shape)}",
    )
    check_dtype("logits", logits)
    if bias is not None:
        check_shape("bias", bias, logits.shape[1:], logits)
    require(
        labels.dtype == torch.int64 and labels.shape == logits.shape[:1] and labels.device == logits.device,
        f"labels must be int64 [{len(logits)}] on {logits.device}, got {labels.dtype} {list(labels.shape)} "
        f"on {labels.device}",
    )
    return logits.new_empty(logits.shape[:1])


def _stock(logits: Tensor, bias: Tensor | None, labels: Tensor, scale: float) -> Tensor:
    _fake(logits, bias, labels, scale)
    at = labels[:, None]
    found = (logits if bias is None else logits + bias).log_softmax(1)
    losses = -found.gather(1, at)[:, 0]
    torch.mul(found.exp_(), scale, out=logits)
    logits.scatter_add_(1, at, logits.new_full(at.shape, -scale))
    return losses


define("cross_entropy_", "(Tensor(a!) logits, Tensor? bias, Tensor labels, float scale) -> Tensor", _fake)
torch.library.impl("dartsfast::cross_entropy_", "CompositeExplicitAutograd", _stock)
not_differentiable("cross_entropy_")
