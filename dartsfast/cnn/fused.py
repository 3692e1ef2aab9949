"""The CNN cell on the fused operators. The modules stay the owners of weights and running statistics.

Images between cells are [N, C, H, W] in channels_last memory, the same memory as the operators'
[N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.cnn.node import Chain, Edge, Pool, Reduce, Stage, node
from dartsfast.cnn.operations import DilConv, FactorizedReduce, Identity, ReLUConvBN, SepConv, Zero
from dartsfast.ops import alpha_softmax, pool3x3

__all__ = ["alpha_softmax", "cell", "stem"]


def stem(module: nn.Sequential, images: Tensor) -> Tensor:
    """Convolution 3x3 and batch norm with affine: [N, 3, H, W] to [N, C, H, W]."""
    conv, norm = module
    H, W = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    patches = torch.cat([padded[:, y : y + H, x : x + W] for y in range(3) for x in range(3)], -1)
    weight = conv.weight.permute(0, 2, 3, 1).reshape(conv.out_channels, -1, 1, 1)
    edge = Edge(stride=1, relu=False, chains=[Chain(0, [Stage(1, 1, norm)])])
    out = node([(edge, [patches, weight], None)], weight.new_ones(1, 1), "store")
    return _nchw(out * norm.weight + norm.bias)


def cell(
    preprocess: Sequence[nn.Module],
    mixed: Sequence[nn.Module],
    inputs: Sequence[Tensor],
    weights: Tensor,
    steps: int,
    multiplier: int,
    memory: str,
) -> Tensor:
    """Run a search cell: ``mixed`` are its edges' MixedOps, ``weights`` [edges, ops] their weights."""
    states = [_single(m, _nhwc(x), memory) for m, x in zip(preprocess, inputs, strict=True)]
    pools: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    offset = 0
    for i in range(steps):
        count = 2 + i
        planned = []
        for j, x in enumerate(states):
            op = mixed[offset + j]
            edge, tensors = plan(op._ops, x, op.stride)
            pooled = None
            if edge.pools:
                if (j, op.stride) not in pools:
                    with torch.no_grad():
                        pools[j, op.stride] = pool3x3(x, stride=op.stride)
                pooled = pools[j, op.stride]
            planned.append((edge, tensors, pooled))
        states.append(node(planned, weights[offset : offset + count], memory))
        offset += count
    return _nchw(torch.cat(states[-multiplier:], dim=-1))


def plan(modules: Iterable[nn.Module], x: Tensor, stride: int) -> tuple[Edge, list[Tensor]]:
    """Read an edge off its modules: its plan, and its tensors, x [N, H, W, C] first.

    A module that no operator serves runs here and now, and its output joins the sum.
    """
    edge = Edge(stride)
    weights: dict[str, list[Tensor]] = {"chain": [], "reduce": [], "extra": []}
    for k, op in enumerate(modules):
        if isinstance(op, Zero):
            continue
        if isinstance(op, Identity):
            edge.skips.append(k)
        elif (found := _chain(op, stride)) is not None:
            edge.chains.append(Chain(k, [stage for stage, _ in found]))
            weights["chain"] += [w for _, stage_weights in found for w in stage_weights]
        elif (pool := _pool(op, stride)) is not None:
            edge.pools.append(Pool(k, *pool))
        elif type(op) is FactorizedReduce and not op.bn.affine:
            op.check(*x.shape[1:3])
            edge.reduces.append(Reduce(k, op.bn))
            weights["reduce"] += [op.conv_1.weight, op.conv_2.weight]
        else:
            edge.extras.append(k)
            weights["extra"].append(_nhwc(op(_nchw(x))))
    return edge, [x, *weights["chain"], *weights["reduce"], *weights["extra"]]


def _single(module: nn.Module, x: Tensor, memory: str) -> Tensor:
    edge, tensors = plan([module], x, 2 if isinstance(module, FactorizedReduce) else 1)
    return node([(edge, tensors, None)], x.new_ones(1, 1), memory)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


Found = list[tuple[Stage, list[Tensor]]]


def _chain(op: nn.Module, stride: int) -> Found | None:
    stages: list[tuple[Stage, list[Tensor]] | None]
    if type(op) is SepConv:
        stages = [_stage(*op.op[1:4], stride=stride), _stage(*op.op[5:8], stride=1)]
    elif type(op) is DilConv:
        stages = [_stage(*op.op[1:4], stride=stride)]
    elif type(op) is ReLUConvBN:
        stages = [_stage(None, *op.op[1:3], stride=stride)]
    else:
        return None
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
        and first.padding == (D * (K - 1) // 2, D * (K - 1) // 2)
        and (depthwise is None or depthwise.groups == depthwise.in_channels == depthwise.out_channels)
        and pointwise.kernel_size == (1, 1)
        and pointwise.groups == 1
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
    pool, norm = op
    if norm.affine or type(pool) not in (nn.MaxPool2d, nn.AvgPool2d):
        return None
    if (pool.kernel_size, pool.stride, pool.padding) != (3, stride, 1) or pool.ceil_mode:
        return None
    if isinstance(pool, nn.MaxPool2d):
        return (0, norm) if pool.dilation == 1 and not pool.return_indices else None
    return (1, norm) if not pool.count_include_pad and pool.divisor_override is None else None
