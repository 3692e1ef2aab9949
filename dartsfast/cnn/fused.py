"""The CNN cell on the fused operators. The modules stay the owners of weights and running statistics.

Images between cells are [N, C, H, W] in channels_last memory, the same memory as the operators'
[N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from dartsfast.cnn.edge import Edge, Stage
from dartsfast.cnn.node import node
from dartsfast.cnn.operations import FactorizedReduce
from dartsfast.cnn.plan import are, nchw, nhwc, plan
from dartsfast.ops import alpha_softmax, pool3x3
from dartsfast.ops.contract import Function, eager, once_differentiable
from dartsfast.plain import is_plain_tree
from dartsfast.recompute import applied

__all__ = ["alpha_softmax", "cell", "stem"]

# What is kept of an image that lives: two cells read the outputs of one.
_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@eager
def stem(module: Any, images: Tensor, storage: torch.dtype | None) -> Tensor:
    """Convolution 3x3 and batch norm with affine: [N, 3, H, W] to [N, C, H, W]; any other stem as it is."""
    built = type(module) is nn.Sequential and is_plain_tree(module)
    if not built or not are(module, (nn.Conv2d, nn.BatchNorm2d)):
        return module(images)
    conv, norm = module
    shape = conv.in_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    usual = shape == (3, (3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"
    if not usual or conv.bias is not None or not norm.affine:
        return module(images)
    N, _, H, W = images.shape
    patches = F.unfold(images, 3, padding=1).transpose(1, 2).reshape(N, H, W, -1)
    # In the order of the patches, so that its gradient is contiguous, as that of nn.Conv2d.
    weight = conv.weight.reshape(conv.out_channels, -1, 1, 1)
    edge = Edge((0,), stride=1, relu=False, single=[Stage(1, 1, norm)], storage=storage)
    stored = [_stored(patches, storage)]
    out = node([edge], [[patches, weight]], [None], weight.new_ones(1, 1), "store", stored)
    return nchw(_Affine.apply(out, norm.weight, norm.bias, storage))


@eager
def cell(
    preprocess: Sequence[nn.Module],
    mixed: Sequence[Any],
    altered: Sequence[bool],
    inputs: Sequence[Tensor],
    weights: Tensor,
    steps: int,
    multiplier: int,
    memory: str,
    storage: torch.dtype | None,
) -> Tensor:
    """Run a search cell: ``mixed`` are its edges' MixedOps, ``weights`` [edges, ops] their weights.

    Edges that are ``altered`` run as the modules that they are. What is kept for the backward is kept as
    ``storage``, with ``memory="recompute"`` only what lies between two passes; None: as it is computed.
    """
    states = [_single(m, x, memory, storage) for m, x in zip(preprocess, inputs, strict=True)]
    kept_as = storage if memory == "store" else None
    stored = [_stored(x, kept_as) for x in states]
    pools: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    offset = 0
    for i in range(steps):
        count = 2 + i
        edges, tensors, pooled = [], [], []
        modules, rows = mixed[offset : offset + count], weights[offset : offset + count]
        apart = altered[offset : offset + count]
        for j, (op, x) in enumerate(zip(modules, states, strict=True)):
            if apart[j]:
                edge, group = Edge((), stride=1), [x]
            else:
                # An operation without a column has no weight and takes no part.
                edge, group = plan(islice(op._ops, rows.shape[1]), x, op.stride, storage)
            if edge.pools and (j, op.stride) not in pools:
                with torch.no_grad():
                    pools[j, op.stride] = pool3x3(x, stride=op.stride)
            edges.append(edge)
            tensors.append(group)
            pooled.append(pools[j, op.stride] if edge.pools else None)
        found = []
        if any(edge.ops for edge in edges):
            found.append(node(edges, tensors, pooled, rows, memory, stored[:count]))
        else:  # nothing but zeros, or edges that run as they are: the modules know what shape that is
            apart = [True] * count
        for op, x, row, ordinary in zip(modules, states, rows, apart, strict=True):
            if ordinary:
                found.append(nhwc(applied(op, memory, nchw(x), row)).to(weights.dtype))
        states.append(sum(found[1:], found[0]).contiguous())
        stored.append(_stored(states[-1], kept_as))
        offset += count
    return nchw(_Concatenate.apply(*states[-multiplier:]))


class _Affine(Function):
    """x * weight + bias, with [C] both; keeps x as it is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, storage: torch.dtype | None) -> Tensor:
        ctx.save_for_backward(_stored(x, storage), weight)
        return x * weight + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        pixels = (0, 1, 2)
        return (
            g * weight if needed[0] else None,
            (g * x).sum(pixels) if needed[1] else None,
            g.sum(pixels) if needed[2] else None,
            None,
        )


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


def _single(module: nn.Module, image: Tensor, memory: str, storage: torch.dtype | None) -> Tensor:
    x = _ChannelsLast.apply(image)
    edge, tensors = plan([module], x, 2 if isinstance(module, FactorizedReduce) else 1, storage)
    if not edge.ops:  # zeros
        return nhwc(module(image)).contiguous()
    stored = [nhwc(_stored(image, storage if memory == "store" else None))]
    return node([edge], [tensors], [None], x.new_ones(1, 1), memory, stored)


def _stored(x: Tensor, storage: torch.dtype | None) -> Tensor:
    """Return ``x`` as it is kept for the backward: one copy for all nodes and cells that read it."""
    if storage is None or torch.is_inference_mode_enabled():  # where there is none
        return x
    copy = _copies.get(x)
    if copy is None or copy.dtype != storage:
        copy = _copies[x] = x.detach().to(storage)
    return copy
