"""Fully connected layers whose bits do not depend on the number of threads, as a math library's may."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.modules.plain import is_plain
from dartsfast.ops.contract import Function, eager, once_differentiable

kernels = torch.ops.dartsfast


@eager
def linear(module: Any, x: Tensor) -> Tensor:
    """Apply an ``nn.Linear`` to [R, in], by ``gemm_``; a module that is not plain runs as it is."""
    if not is_plain(module):
        return module(x)
    return _Linear.apply(x.to(module.weight.dtype), module.weight, module.bias)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = x.new_empty(len(x), len(weight))
        kernels.gemm_(out, x, weight.T, False)
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        d_x, d_weight = (
            x.new_empty(x.shape) if of_x else None,
            g.new_empty(weight.shape) if of_weight else None,
        )
        if d_x is not None:
            kernels.gemm_(d_x, g, weight, False)
        if d_weight is not None:
            kernels.gemm_(d_weight, g.T, x, False)
        return d_x, d_weight, g.sum(0) if of_bias else None
