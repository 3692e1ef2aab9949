"""Batch norms whose statistics are those of all ranks' images together, on any device.

torch's ``SyncBatchNorm`` is the same for GPUs alone, with sums in the order of its library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dartsfast import ranks


class _OfAll(torch.autograd.Function):
    """What every rank has in the place of a tensor, [ranks, ...].

    It is part of every rank's loss, so that the gradient of their sum by it is a sum over the ranks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return ranks.exchanged(x.expand(ranks.size(), *x.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return ranks.ordered_sum(ranks.exchanged(gradients))


class SyncBatchNorm(_BatchNorm):
    """Batch norm of [N, C, ...] over the images of all ranks, of which each is to have as many."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``; in evaluation, or without other ranks, as any batch norm."""
        if not self.training or ranks.size() == 1:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0, keepdim=True)
        variances, means = _OfAll.apply(torch.stack([variance, mean])).unbind(1)  # [ranks, 1, C, 1, ...] each
        mean = ranks.ordered_sum(means) / ranks.size()
        variance = ranks.ordered_sum(variances + (means - mean).square()) / ranks.size()
        self._move_running(mean, variance, x.numel() // x.size(1) * ranks.size())
        x = (x - mean) * torch.rsqrt(variance + self.eps)
        if self.affine:
            x = x * self.weight.view_as(mean) + self.bias.view_as(mean)
        return x.to(input.dtype)

    @torch.no_grad()
    def _move_running(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.flatten().to(self.running_mean), self.momentum)
        self.running_var.lerp_(unbiased.flatten().to(self.running_var), self.momentum)
        self.num_batches_tracked.add_(1)


def synchronise_(module: nn.Module) -> None:
    """Put a :class:`SyncBatchNorm` with the same parameters and buffers in the place of every batch norm."""
    for parent in list(module.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, _BatchNorm) and not isinstance(norm, SyncBatchNorm):
                setattr(parent, name, _synchronised(norm))


def _synchronised(norm: _BatchNorm) -> SyncBatchNorm:
    own = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine)
    own._parameters.update(norm._parameters)
    own._buffers.update(norm._buffers)
    return own.train(norm.training)
