"""Reads an edge off its modules: which of them the fused operators serve, and with which tensors.

A module is served only where it is just what :mod:`dartsfast.cnn.operations` builds. A subclass, hooks, a
``forward`` of its own, another activation, norm or padding: it runs as it is, and what it returns joins the
sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from dartsfast.cnn.operations import DilConv, FactorizedReduce, Identity, ReLUConvBN, SepConv, Zero
from dartsfast.fused.edge import Edge, Operation, Reduce, Stage, gather
from dartsfast.modules.plain import is_plain_tree
from dartsfast.ops.branch_conv import LARGEST_DILATION, LARGEST_KERNEL


def read(modules: Iterable[nn.Module], stride: int) -> Edge:
    """Read an edge off its modules, ``Edge.extras`` those that no operator serves."""
    modules = list(modules)
    found = [(k, _operation(op, stride) if is_plain_tree(op) else None) for k, op in enumerate(modules)]
    served = [(k, op) for k, op in found if op is not None]
    _, left = gather(stride, served)
    extras = [(k, modules[k]) for k, op in found if op is None or k in left]
    return gather(stride, [(k, op) for k, op in served if k not in left], extras)[0]


def _operation(op: Any, stride: int) -> Operation | None:
    if type(op) in (Zero, Identity):
        return Operation("zero" if type(op) is Zero else "skip")
    if type(op) in _LAYERS:
        return _chain(op, stride)
    if type(op) is FactorizedReduce and are((op.relu, op.conv_1, op.conv_2, op.bn), _STAGE):
        return reduction(op.conv_1, op.conv_2, op.bn)
    if type(op) is nn.Sequential and len(op) == 2:
        return pool(op[0], op[1], stride)
    return None


_STAGE = (nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d)
_LAYERS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    ReLUConvBN: (nn.ReLU, nn.Conv2d, nn.BatchNorm2d),
    DilConv: _STAGE,
    SepConv: _STAGE * 2,
}


def are(modules: Iterable[nn.Module], types: tuple[type[nn.Module], ...]) -> bool:
    """Whether the modules are of just these types: a subclass may compute anything."""
    found = tuple(modules)
    return tuple(map(type, found)) == types and not any(getattr(m, "inplace", False) for m in found)


def _chain(op: Any, stride: int) -> Operation | None:
    part: Any = getattr(op, "op", None)
    if type(part) is not nn.Sequential or not are(part, _LAYERS[type(op)]):
        return None
    modules: list[Any] = list(part)
    if type(op) is ReLUConvBN:
        return chain([stage(None, modules[1], modules[2], stride)])
    stages = [stage(modules[1], modules[2], modules[3], stride)]
    if type(op) is SepConv:
        stages.append(stage(modules[5], modules[6], modules[7], 1))
    return chain(stages)


def chain(stages: Sequence[Stage | None]) -> Operation | None:
    """Return one stage or two as an operation, or None where one of them is None."""
    found = tuple(stage for stage in stages if stage is not None)
    return Operation("separable" if len(found) == 2 else "single", found) if all(stages) else None


def reduction(conv_1: nn.Conv2d, conv_2: nn.Conv2d, norm: nn.BatchNorm2d) -> Operation | None:
    """Return a factorized reduction as it was built: two pointwise convolutions of stride 2; else None."""
    fits = (
        all(
            (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (2, 2), (0, 0), 1)
            and conv.bias is None
            for conv in (conv_1, conv_2)
        )
        and conv_1.out_channels == conv_2.out_channels
        and _plain_norm(norm)
    )
    return Operation("reduce", (Reduce((conv_1.weight, conv_2.weight), norm),)) if fits else None


def _plain_norm(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm has no affine, and statistics that kernels serve. It goes by tensors, not by flags."""
    return norm.weight is None and norm.bias is None and moves(norm)


def moves(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm has all running statistics, where and as what kernels can move them, or none."""
    mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None and variance is None and not norm.track_running_stats:
        return True
    if mean is None or variance is None or batches is None or batches.dtype != torch.int64:
        return False  # model.type(...) casts the count, too
    floating = mean.is_floating_point() and variance.is_floating_point()
    return floating and all(t.is_contiguous() for t in (mean, variance, batches))


def stage(
    depthwise: nn.Conv2d | None, pointwise: nn.Conv2d, norm: nn.BatchNorm2d, stride: int
) -> Stage | None:
    """Return a stage, or None where the convolutions are not of the operator's kind."""
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
        and _plain_norm(norm)
    )
    if not fits:
        return None
    weights = (pointwise.weight,) if depthwise is None else (depthwise.weight, pointwise.weight)
    return Stage(weights, D, norm)


def pool(pool: Any, norm: Any, stride: int) -> Operation | None:
    """Return a pooling 3x3 (0 for maximum or 1 for average) and its norm; None for anything else."""
    if type(norm) is not nn.BatchNorm2d or not _plain_norm(norm):
        return None
    half = pooled(pool, stride)
    return None if half is None else Operation("pool", (half, norm))


def pooled(pool: Any, stride: int) -> int | None:
    """Return 0 for a maximum and 1 for an average over 3x3 as pool3x3 computes them, else None."""
    if type(pool) not in (nn.MaxPool2d, nn.AvgPool2d):
        return None
    sizes = [_both(size) for size in (pool.kernel_size, pool.stride, pool.padding)]
    if sizes != [(3, 3), (stride, stride), (1, 1)] or pool.ceil_mode:
        return None
    if isinstance(pool, nn.MaxPool2d):
        return 0 if _both(pool.dilation) == (1, 1) and not pool.return_indices else None
    return 1 if not pool.count_include_pad and pool.divisor_override is None else None


def _both(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size
