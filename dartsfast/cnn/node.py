"""A node of a CNN cell, x_i = sum over edges and operations of w * BN(op(x_j)), as one autograd node.

Kept for the backward are the convolutions' pre-norm outputs z and the channel statistics (``"store"``), or
the node's inputs and the statistics only (``"recompute"``: z is computed again, edge by edge). The
backward makes one pass over the gradient g and the z of an edge, which gives the gradients of the
mixing weights and all that batch norm needs; the convolutions form dz from g and z as they read them.
Images are [N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dartsfast.cnn.edge import Edge, Kept, Pooled, columns, run, summed
from dartsfast.cnn.edge_backward import EdgeBackward
from dartsfast.ops.contract import Function, nothing_to_record, once_differentiable

kernels = torch.ops.dartsfast


def node(
    edges: Sequence[Edge],
    tensors: Sequence[Sequence[Tensor]],
    pooled: Sequence[Pooled | None],
    weights: Tensor,
    memory: str,
    stored: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return the sum over ``edges`` of weights[edge, op] * BN(op(x)), [N, H, W, C].

    Args:
        edges: the plans.
        tensors: an edge's source x [N, H, W, C], weights and outputs of ordinary modules, as
            :meth:`Edge.split` takes them.
        pooled: pool3x3 of the source, where the edge has pools.
        weights: [edges, ops].
        memory: ``store`` or ``recompute``.
        stored: the sources as ``store`` keeps them, which may be in half precision; as they are unless given.

    At least one edge has an operation.

    Raises:
        InputError: batch norm over one value.
    """
    sizes = [len(group) for group in tensors]
    # Under autocast some come in half precision; the kernels have float32 and float64.
    flat = [t.to(weights.dtype) for group in tensors for t in group]
    return _Node.apply(list(edges), list(pooled), sizes, memory, stored, weights, *flat)


class _Node(Function):
    @staticmethod
    def forward(
        ctx: Any,
        edges: list[Edge],
        pooled: list[Pooled | None],
        sizes: list[int],
        memory: str,
        stored: Sequence[Tensor] | None,
        weights: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        out: Any = None
        kept, batch = [], []
        ctx.mixed = [len(edge.ops) for edge in edges]
        places = tuple(i * weights.shape[1] + op for i, edge in enumerate(edges) for op in edge.ops)
        ctx.places = columns(places, weights.device)
        rows = weights.flatten()[ctx.places].split(ctx.mixed)  # in the order of the sums
        with nothing_to_record():
            for edge, pool, row, group in zip(edges, pooled, rows, _groups(tensors, sizes), strict=True):
                found, own = run(edge, group, pool)
                if edge.ops:
                    mean, rstd = found.final.unbind(1)
                    out = kernels.mixed_sum(summed(edge, found, group), mean, rstd, row, out)
                if memory == "recompute":
                    found = Kept(found.inner, found.final)
                found.pooled = None  # cheaper to compute again than to keep
                kept.append(found.tensors())
                batch.append(own)
        ctx.edges, ctx.sizes, ctx.memory, ctx.batch = edges, sizes, memory, batch
        ctx.kept = [len(k) for k in kept]
        groups = _groups(tensors, sizes)
        if stored is not None:
            groups = [(x, *group[1:]) for x, group in zip(stored, groups, strict=True)]
        ctx.save_for_backward(weights, *(t for part in (*groups, *kept) for t in part))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        weights, *saved = ctx.saved_tensors
        count = sum(ctx.sizes)
        groups, kept = _groups(saved[:count], ctx.sizes), _groups(saved[count:], ctx.kept)
        needed = _groups(ctx.needs_input_grad[6:], ctx.sizes)
        d_rows: list[Tensor] = []
        gradients: list[Tensor | None] = []
        rows = weights.flatten()[ctx.places].split(ctx.mixed)
        with nothing_to_record():
            for i, (edge, row) in enumerate(zip(ctx.edges, rows, strict=True)):
                found = Kept.of(edge, kept[i])
                if ctx.memory == "recompute":
                    found, _ = run(edge, groups[i], None, found)
                elif edge.pools:
                    found.pooled, _ = kernels.pool3x3(groups[i][0], edge.stride)
                backward = EdgeBackward(edge, found, ctx.batch[i], groups[i], needed[i], g)
                d_row, d_tensors = backward.run(row)
                d_rows.append(d_row)
                gradients += d_tensors
        d_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
        d_weights.view(-1)[ctx.places] = torch.cat(d_rows)
        return None, None, None, None, None, d_weights, *gradients


def _groups(tensors: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    groups, start = [], 0
    for size in sizes:
        groups.append(tensors[start : start + size])
        start += size
    return groups
