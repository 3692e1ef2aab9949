"""The CNN cell on the fused operators. The modules stay the owners of weights and running statistics.

Images between cells are [N, C, H, W] in channels_last memory, the same memory as the operators'
[N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from dartsfast.cnn.edge import Edge, Stage
from dartsfast.cnn.node import node
from dartsfast.cnn.operations import DilConv, FactorizedReduce, Identity, ReLUConvBN, SepConv, Zero
from dartsfast.ops import alpha_softmax, pool3x3
from dartsfast.ops.branch_conv import LARGEST_DILATION, LARGEST_KERNEL

__all__ = ["alpha_softmax", "cell", "stem"]

# What is kept of an image that lives: two cells read the outputs of one.
_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def stem(module: Any, images: Tensor, storage: torch.dtype | None) -> Tensor:
    """Convolution 3x3 and batch norm with affine: [N, 3, H, W] to [N, C, H, W]."""
    conv, norm = module
    H, W = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    patches = torch.cat([padded[:, y : y + H, x : x + W] for y in range(3) for x in range(3)], -1)
    weight = conv.weight.permute(0, 2, 3, 1).reshape(conv.out_channels, -1, 1, 1)
    edge = Edge((0,), stride=1, relu=False, single=[Stage(1, 1, norm)], storage=storage)
    stored = [_stored(patches, storage)]
    out = node([edge], [[patches, weight]], [None], weight.new_ones(1, 1), "store", stored)
    return _nchw(_Affine.apply(out, norm.weight, norm.bias, storage))


def cell(
    preprocess: Sequence[nn.Module],
    mixed: Sequence[Any],
    inputs: Sequence[Tensor],
    weights: Tensor,
    steps: int,
    multiplier: int,
    memory: str,
    storage: torch.dtype | None,
) -> Tensor:
    """Run a search cell: ``mixed`` are its edges' MixedOps, ``weights`` [edges, ops] their weights.

    What is kept for the backward is kept as ``storage``, with ``memory="recompute"`` only what lies between
    two passes; None: as it is computed.
    """
    states = [_single(m, x, memory, storage) for m, x in zip(preprocess, inputs, strict=True)]
    kept_as = storage if memory == "store" else None
    stored = [_stored(x, kept_as) for x in states]
    pools: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    offset = 0
    for i in range(steps):
        count = 2 + i
        edges, tensors, pooled = [], [], []
        for j, (op, x) in enumerate(zip(mixed[offset : offset + count], states, strict=True)):
            edge, group = plan(op._ops, x, op.stride, storage)
            if edge.pools and (j, op.stride) not in pools:
                with torch.no_grad():
                    pools[j, op.stride] = pool3x3(x, stride=op.stride)
            edges.append(edge)
            tensors.append(group)
            pooled.append(pools[j, op.stride] if edge.pools else None)
        row = weights[offset : offset + count]
        states.append(node(edges, tensors, pooled, row, memory, stored[:count]))
        stored.append(_stored(states[-1], kept_as))
        offset += count
    return _nchw(_Concatenate.apply(*states[-multiplier:]))


class _Affine(torch.autograd.Function):
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


class _Concatenate(torch.autograd.Function):
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


def plan(
    modules: Iterable[nn.Module], x: Tensor, stride: int, storage: torch.dtype | None
) -> tuple[Edge, list[Tensor]]:
    """Read an edge off its modules: its plan, and its tensors, x [N, H, W, C] first.

    A module that no operator serves runs here and now, and its output joins the sum.
    """
    kinds: dict[str, list[tuple[int, Any]]] = {
        kind: [] for kind in ("separable", "single", "pool", "reduce", "skip", "extra")
    }
    for k, op in enumerate(modules):
        if isinstance(op, Zero):
            continue
        if isinstance(op, Identity):
            kinds["skip"].append((k, None))
        elif (stages := _stages(op, stride)) is not None:
            kinds["separable" if len(stages) == 2 else "single"].append((k, stages))
        elif (pool := _pool(op, stride)) is not None and pool[0] not in {p[0] for _, p in kinds["pool"]}:
            kinds["pool"].append((k, pool))
        elif type(op) is FactorizedReduce and not op.bn.affine:
            op.check(*x.shape[1:3])
            kinds["reduce"].append((k, op))
        else:
            kinds["extra"].append((k, _nhwc(op(_nchw(x)))))
    chains = [stages for kind in ("separable", "single") for _, stages in kinds[kind]]
    edge = Edge(
        tuple(k for found in kinds.values() for k, _ in found),
        stride,
        separable=[(a[0], b[0]) for _, (a, b) in kinds["separable"]],
        single=[stage for _, [(stage, _)] in kinds["single"]],
        pools=[pool for _, pool in kinds["pool"]],
        reduces=[op.bn for _, op in kinds["reduce"]],
        skips=len(kinds["skip"]),
        extras=len(kinds["extra"]),
        storage=storage,
    )
    weights = [w for stages in chains for w in stages[0][1]]
    weights += [w for stages in chains for _, later in stages[1:] for w in later]
    weights += [w for _, op in kinds["reduce"] for w in (op.conv_1.weight, op.conv_2.weight)]
    return edge, [x, *weights, *(image for _, image in kinds["extra"])]


def _single(module: nn.Module, image: Tensor, memory: str, storage: torch.dtype | None) -> Tensor:
    x = _nhwc(image)
    edge, tensors = plan([module], x, 2 if isinstance(module, FactorizedReduce) else 1, storage)
    stored = [_nhwc(_stored(image, storage if memory == "store" else None))]
    return node([edge], [tensors], [None], x.new_ones(1, 1), memory, stored)


def _stored(x: Tensor, storage: torch.dtype | None) -> Tensor:
    """Return ``x`` as it is kept for the backward: one copy for all nodes and cells that read it."""
    if storage is None:
        return x
    copy = _copies.get(x)
    if copy is None or copy.dtype != storage:
        copy = _copies[x] = x.detach().to(storage)
    return copy


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


Found = list[tuple[Stage, list[Tensor]]]


def _stages(op: nn.Module, stride: int) -> Found | None:
    if type(op) not in (SepConv, DilConv, ReLUConvBN):
        return None
    part: Any = op.op
    if type(op) is ReLUConvBN:
        stages = [_stage(None, part[1], part[2], stride)]
    else:
        stages = [_stage(part[1], part[2], part[3], stride)]
    if type(op) is SepConv:
        stages.append(_stage(part[5], part[6], part[7], 1))
    return [stage for stage in stages if stage is not None] if all(stages) else None


def _stage(
    depthwise: nn.Conv2d | None, pointwise: nn.Conv2d, norm: nn.BatchNorm2d, stride: int
) -> tuple[Stage, list[Tensor]] | None:
    """Return a stage and its weights, or None where the convolutions are not of the operator's kind."""
    first = pointwise if depthwise is None else depthwise
    K, D = first.kernel_size[0], first.dilation[0]
    fits = (
        first.stride == (stride, stride)
        and first.kernel_size == (K, K)
        and first.dilation == (D, D)
        and K % 2 == 1
        and K <= LARGEST_KERNEL
        and D <= LARGEST_DILATION
        and stride in (1, 2)
        and first.padding_mode == "zeros"
        and first.padding == (D * (K - 1) // 2, D * (K - 1) // 2)
        and (depthwise is None or depthwise.groups == depthwise.in_channels == depthwise.out_channels)
        and pointwise.kernel_size == (1, 1)
        and pointwise.groups == 1
        and (depthwise is None or (pointwise.stride, pointwise.padding) == ((1, 1), (0, 0)))
        and pointwise.bias is None
        and first.bias is None
        and not norm.affine
    )
    if not fits:
        return None
    weights = [pointwise.weight] if depthwise is None else [depthwise.weight, pointwise.weight]
    return Stage(len(weights), D, norm), weights


def _pool(op: nn.Module, stride: int) -> tuple[int, nn.BatchNorm2d] | None:
    """Return (0 for maximum or 1 for average, norm), or None for anything else."""
    if not (isinstance(op, nn.Sequential) and len(op) == 2 and isinstance(op[1], nn.BatchNorm2d)):
        return None
    pool, norm = op[0], op[1]
    if norm.affine or type(pool) not in (nn.MaxPool2d, nn.AvgPool2d):
        return None
    if (pool.kernel_size, pool.stride, pool.padding) != (3, stride, 1) or pool.ceil_mode:
        return None
    if isinstance(pool, nn.MaxPool2d):
        return (0, norm) if pool.dilation == 1 and not pool.return_indices else None
    return (1, norm) if not pool.count_include_pad and pool.divisor_override is None else None
