"""Reads an edge off its modules: which of them the fused operators serve, and with which tensors.

A module is served only where it is just what :mod:`dartsfast.cnn.operations` builds. A subclass, hooks, a
``forward`` of its own, another activation, norm or padding: it runs as it is, and what it returns joins the
sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from torch import nn

from dartsfast.cnn.operations import DilConv, FactorizedReduce, Identity, ReLUConvBN, SepConv, Zero
from dartsfast.fused.edge import Edge, Reduce, Stage
from dartsfast.modules.plain import is_plain_tree
from dartsfast.ops.branch_conv import LARGEST_DILATION, LARGEST_KERNEL


def read(modules: Iterable[nn.Module], stride: int) -> Edge:
    """Read an edge off its modules, ``Edge.extras`` those that no operator serves."""
    modules = list(modules)
    kinds: dict[str, list[tuple[int, Any]]] = {
        kind: [] for kind in ("separable", "single", "pool", "reduce", "skip", "extra")
    }
    for k, op in enumerate(modules):
        if not is_plain_tree(op):
            kinds["extra"].append((k, op))
        elif type(op) is Zero:
            continue
        elif type(op) is Identity:
            kinds["skip"].append((k, None))
        elif (stages := _stages(op, stride)) is not None:
            kinds["separable" if len(stages) == 2 else "single"].append((k, stages))
        elif (pool := _pool(op, stride)) is not None and pool[0] not in {p[0] for _, p in kinds["pool"]}:
            kinds["pool"].append((k, pool))
        elif isinstance(op, FactorizedReduce) and _reduces(op):
            kinds["reduce"].append((k, op))
        else:
            kinds["extra"].append((k, op))
    chains = [stages for kind in ("separable", "single") for _, stages in kinds[kind]]
    form = max(map(_form, chains), key=itemgetter(0), default=None)
    for kind in ("separable", "single"):
        kinds["extra"] += [(k, modules[k]) for k, stages in kinds[kind] if _form(stages) != form]
        kinds[kind] = [(k, stages) for k, stages in kinds[kind] if _form(stages) == form]
    kinds["extra"].sort(key=itemgetter(0))
    return Edge(
        stride,
        tuple(k for found in kinds.values() for k, _ in found),
        separable=[(a, b) for _, (a, b) in kinds["separable"]],
        single=[stage for _, [stage] in kinds["single"]],
        pools=[pool for _, pool in kinds["pool"]],
        reduces=[Reduce((op.conv_1.weight, op.conv_2.weight), op.bn) for _, op in kinds["reduce"]],
        skips=len(kinds["skip"]),
        extras=[op for _, op in kinds["extra"]],
    )


def _form(stages: Sequence[Stage]) -> tuple[int, int]:
    """Return weights and channels of a chain's first stage: one operator takes those that are alike."""
    return len(stages[0].weights), stages[0].weights[-1].shape[0]


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


def _stages(op: nn.Module, stride: int) -> list[Stage] | None:
    layers = _LAYERS.get(type(op))
    part: Any = getattr(op, "op", None)
    if layers is None or type(part) is not nn.Sequential or not are(part, layers):
        return None
    modules: list[Any] = list(part)
    if type(op) is ReLUConvBN:
        stages = [_stage(None, modules[1], modules[2], stride)]
    else:
        stages = [_stage(modules[1], modules[2], modules[3], stride)]
    if type(op) is SepConv:
        stages.append(_stage(modules[5], modules[6], modules[7], 1))
    return [stage for stage in stages if stage is not None] if all(stages) else None


def _reduces(op: Any) -> bool:
    """Whether ``op`` is a factorized reduction as it was built: two pointwise convolutions of stride 2."""
    return (
        type(op) is FactorizedReduce
        and are((op.relu, op.conv_1, op.conv_2, op.bn), _STAGE)
        and all(
            (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (2, 2), (0, 0), 1)
            and conv.bias is None
            for conv in (op.conv_1, op.conv_2)
        )
        and op.conv_1.out_channels == op.conv_2.out_channels
        and _plain_norm(op.bn)
    )


def _plain_norm(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm has no affine, and statistics that kernels serve. It goes by tensors, not by flags."""
    return norm.weight is None and norm.bias is None and moves(norm)


def moves(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm has all running statistics, where kernels can move them, or none."""
    running = norm.running_mean, norm.running_var, norm.num_batches_tracked
    whole = all(t is not None and t.is_contiguous() for t in running)
    none = running[0] is None and running[1] is None and not norm.track_running_stats
    return whole or none


def _stage(
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


def _pool(op: nn.Module, stride: int) -> tuple[int, nn.BatchNorm2d] | None:
    """Return (0 for maximum or 1 for average, norm), or None for anything else."""
    if type(op) is not nn.Sequential or len(op) != 2:
        return None
    pool: Any = op[0]
    norm: Any = op[1]
    if (
        type(norm) is not nn.BatchNorm2d
        or not _plain_norm(norm)
        or type(pool) not in (nn.MaxPool2d, nn.AvgPool2d)
    ):
        return None
    if (pool.kernel_size, pool.stride, pool.padding) != (3, stride, 1) or pool.ceil_mode:
        return None
    if isinstance(pool, nn.MaxPool2d):
        return (0, norm) if pool.dilation == 1 and not pool.return_indices else None
    return (1, norm) if not pool.count_include_pad and pool.divisor_override is None else None
