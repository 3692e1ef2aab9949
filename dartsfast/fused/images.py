"""What a cell does with images beside its program, each in memory that is used again.

Images between cells are [N, C, H, W] in channels_last memory, the same memory as the operators' [N, H, W, C].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dartsfast.ops.contract import Function, once_differentiable

# What is kept of an image that lives, and of which version: two cells read the outputs of one.
_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class _Patches(Function):
    """The windows 3x3 of images [N, C, H, W], as [N, H, W, 9 C]; torch's own would be made twice."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        N, C, H, W = ctx.shape = images.shape
        padded = F.pad(images, (1, 1, 1, 1))
        n, c, h, w = padded.stride()
        windows = padded.as_strided((N, H, W, C, 3, 3), (n, h, w, c, h, w))
        out = torch.ops.dartsfast.empty(images, (N, H, W, 9 * C))
        out.view(windows.shape).copy_(windows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor]:
        N, C, H, W = ctx.shape
        return (F.fold(g.reshape(N, H * W, 9 * C).transpose(1, 2), (H, W), 3, padding=1),)


class _Affine(Function):
    """x * weight + bias, with [C] both; keeps x as ``stored``. All that is large in memory used again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stored: Tensor) -> Tensor:
        ctx.save_for_backward(stored, weight)
        return _product(x, weight).add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        pixels = (0, 1, 2)
        return (
            _product(g, weight) if needed[0] else None,
            _product(g, x).sum(pixels) if needed[1] else None,
            g.sum(pixels) if needed[2] else None,
            None,
        )


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mul(a, b, out=torch.ops.dartsfast.empty(a, a.shape))


class _Concatenate(Function):
    """Concatenates [N, H, W, C] by channels; all that is large, the gradients too, in memory used again."""

    @staticmethod
    def forward(ctx: Any, *images: Tensor) -> Tensor:
        ctx.channels = [image.shape[-1] for image in images]
        out = torch.ops.dartsfast.empty(images[0], [*images[0].shape[:-1], sum(ctx.channels)])
        return torch.cat(images, -1, out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        # Copies, which autograd may add to in place: to a view it would add out of place.
        return tuple(
            torch.ops.dartsfast.empty(g, part.shape).copy_(part) for part in g.split(ctx.channels, -1)
        )


class _ChannelsLast(Function):
    """[N, C, H, W] as [N, H, W, C], the same memory; autograd may add to the gradient in place."""

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        return nhwc(image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor]:
        # A permuted view would hold on to g, and the sum over the cells that read the image be a new tensor.
        return (g.detach().transpose_(1, 3).transpose_(2, 3),)


def as_stored(x: Tensor, storage: torch.dtype | None) -> Tensor:
    """Return ``x`` as it is kept for the backward: one copy for all nodes and cells that read it."""
    if storage is None or not torch.is_grad_enabled():  # where there is none
        return x
    if x.is_inference():  # which has no version
        return x.detach().to(storage)
    kept, copy = _copies.get(x, (None, None))
    if copy is None or copy.dtype != storage or kept != x._version:
        copy = x.detach().to(storage)
        _copies[x] = x._version, copy
    return copy


def nhwc(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] as [N, H, W, C], the same memory."""
    return x.permute(0, 2, 3, 1)


def nchw(x: Tensor) -> Tensor:
    """Return images [N, H, W, C] as [N, C, H, W], the same memory."""
    return x.permute(0, 3, 1, 2)
