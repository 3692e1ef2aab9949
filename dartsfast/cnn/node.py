"""A node of a CNN cell, x_i = sum over edges and operations of w * BN(op(x_j)), as one autograd node.

Kept for the backward are the pre-norm outputs z and the channel statistics (``memory="store"``), or
the node's inputs and the statistics only (``"recompute"``: z is computed again, edge by edge). The
backward makes one pass over the gradient g and the z of an edge, which gives the gradients of the
mixing weights and all that batch norm needs; the convolutions form dz from g and z as they read them.
Images are [N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.errors import InputError

kernels = torch.ops.dartsfast


@dataclass
class Stage:
    """[relu] -> depthwise -> pointwise -> batch norm; one weight: no depthwise."""

    weights: int
    dilation: int
    norm: nn.BatchNorm2d


@dataclass
class Chain:
    """Operation ``op`` of an edge as one stage, or as two (a separable convolution)."""

    op: int
    stages: list[Stage]


@dataclass
class Pool:
    """Operation ``op`` as half 0 (maximum) or 1 (average) of pool3x3."""

    op: int
    half: int
    norm: nn.BatchNorm2d


@dataclass
class Reduce:
    """Operation ``op`` as two strided 1x1 convolutions, the second shifted by a pixel."""

    op: int
    norm: nn.BatchNorm2d


@dataclass
class Edge:
    """What an edge computes from its source; no tensors."""

    stride: int
    relu: bool = True
    chains: list[Chain] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    reduces: list[Reduce] = field(default_factory=list)
    skips: list[int] = field(default_factory=list)
    extras: list[int] = field(default_factory=list)

    def split(
        self, tensors: Sequence[Tensor]
    ) -> tuple[list[list[list[Tensor]]], list[list[Tensor]], list[Tensor]]:
        """Split an edge's tensors, x left out: weights by chain and stage, by reduce, and extras."""
        left = list(tensors)
        take = lambda n: [left.pop(0) for _ in range(n)]  # noqa: E731
        chains = [[take(stage.weights) for stage in chain.stages] for chain in self.chains]
        return chains, [take(2) for _ in self.reduces], left


Planned = tuple[Edge, list[Tensor], tuple[Tensor, Tensor] | None]


def node(edges: Sequence[Planned], weights: Tensor, memory: str) -> Tensor:
    """Return the sum over ``edges`` of weights[edge, op] * BN(op(x)), [N, H, W, C].

    Args:
        edges: plan, tensors (source, weights, outputs of ordinary modules) and pooled source.
        weights: [edges, ops].
        memory: ``store`` or ``recompute``.
    """
    plans = [edge for edge, _, _ in edges]
    pooled = [p for _, _, p in edges]
    sizes = [len(tensors) for _, tensors, _ in edges]
    return _Node.apply(plans, pooled, sizes, memory, weights, *(t for _, ts, _ in edges for t in ts))


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        edges: list[Edge],
        pooled: list[tuple[Tensor, Tensor] | None],
        sizes: list[int],
        memory: str,
        weights: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        out, kept, batch = None, [], []
        for edge, pool, row, group in zip(edges, pooled, weights, _groups(tensors, sizes), strict=True):
            zs = run(edge, group, pool)
            out = _mix(edge, zs, group, row, out)
            kept.append([z.norm for z in zs] + ([] if memory == "recompute" else [z.z for z in zs]))
            batch.append([z.batch for z in zs])
        ctx.edges, ctx.sizes, ctx.memory, ctx.batch = edges, sizes, memory, batch
        ctx.kept = [len(k) for k in kept]
        ctx.save_for_backward(weights, *tensors, *(t for k in kept for t in k))
        if out is None:
            raise InputError("a node without operations other than none has no value")
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        weights, *saved = ctx.saved_tensors
        count = sum(ctx.sizes)
        groups = _groups(saved[:count], ctx.sizes)
        kept = _groups(saved[count:], ctx.kept)
        needed = _groups(ctx.needs_input_grad[5:], ctx.sizes)
        d_weights = torch.zeros_like(weights)
        gradients: list[Tensor | None] = []
        for i, edge in enumerate(ctx.edges):
            norms = kept[i][: len(ctx.batch[i])]
            if ctx.memory == "recompute":
                zs = run(edge, groups[i], None, norms, ctx.batch[i])
            else:
                zs = [Z(*z) for z in zip(kept[i][len(norms) :], norms, ctx.batch[i], strict=True)]
            row, found = _edge_backward(edge, zs, groups[i], weights[i], g, needed[i])
            d_weights[i] = row
            gradients += found
        return None, None, None, None, d_weights, *gradients


def _groups(tensors: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    groups, start = [], 0
    for size in sizes:
        groups.append(tensors[start : start + size])
        start += size
    return groups


@dataclass
class Z:
    """A pre-norm output z [N, Ho, Wo, C], its mean and 1 / std [2, C], and whether they are z's own."""

    z: Tensor
    norm: Tensor
    batch: bool


def run(
    edge: Edge,
    tensors: Sequence[Tensor],
    pooled: tuple[Tensor, Tensor] | None,
    norms: Sequence[Tensor] | None = None,
    batch: Sequence[bool] = (),
) -> list[Z]:
    """Compute every z of an edge: first stages, second stages, pools, reduces.

    With ``norms`` it is for the second time: they are used and running statistics stay.
    """
    x = tensors[0]
    chains, reduces, _ = edge.split(tensors[1:])
    zs: list[Z] = []

    def add(z: Tensor, stats: Tensor, norm: nn.BatchNorm2d) -> None:
        if norms is None:
            zs.append(Z(z, *_statistics(norm, stats, z)))
        else:
            zs.append(Z(z, norms[len(zs)], batch[len(zs)]))

    if edge.chains:
        first = [chain.stages[0] for chain in edge.chains]
        z, stats = _convolve(x, None, [w[0] for w in chains], first, edge)
        for one_z, one_stats, stage in zip(z, stats, first, strict=True):
            add(one_z, one_stats, stage.norm)
    for b, chain in enumerate(edge.chains):
        for stage, stage_weights in zip(chain.stages[1:], chains[b][1:], strict=True):
            z, stats = _convolve(zs[b].z, zs[b].norm, [stage_weights], [stage], Edge(1))
            add(z[0], stats[0], stage.norm)
    if edge.pools:
        z, stats = kernels.pool3x3(x, edge.stride) if pooled is None else pooled
        for pool in edge.pools:
            add(z[pool.half], stats[pool.half], pool.norm)
    for reduce, pair in zip(edge.reduces, reduces, strict=True):
        halves = [
            kernels.branch_conv(v, None, [], [w], [], 2, True) for v, w in zip(_shifted(x), pair, strict=True)
        ]
        add(
            torch.cat([z[0] for z, _ in halves], -1),
            torch.cat([stats[0] for _, stats in halves], -1),
            reduce.norm,
        )
    return zs


def _convolve(
    x: Tensor, norm: Tensor | None, weights: list[list[Tensor]], stages: list[Stage], edge: Edge
) -> tuple[Tensor, Tensor]:
    return kernels.branch_conv(x, norm, *_arguments(weights, stages), edge.stride, edge.relu)


def _arguments(
    weights: list[list[Tensor]], stages: list[Stage]
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Return depthwise, pointwise and dilation as branch_conv takes them."""
    depthwise = [w[0] for w in weights if len(w) == 2]
    return depthwise, [w[-1] for w in weights], [s.dilation for s in stages] if depthwise else []


def _shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x[:, 1:, 1:]


def _statistics(norm: nn.BatchNorm2d, stats: Tensor, z: Tensor) -> tuple[Tensor, bool]:
    """Return mean and 1 / std, [2, C], and whether they are the batch's; move running statistics."""
    batch = norm.training or norm.running_mean is None
    mean, variance = stats.unbind() if batch else (norm.running_mean, norm.running_var)
    if batch:
        pixels = z.shape[0] * z.shape[1] * z.shape[2]
        if pixels == 1:
            raise InputError("batch norm over one value: a batch of more than one image, or larger images")
        if norm.training and norm.track_running_stats:
            with torch.no_grad():
                norm.num_batches_tracked.add_(1)
                share = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.item()
                norm.running_mean.mul_(1 - share).add_(mean, alpha=share)
                norm.running_var.mul_(1 - share).add_(variance, alpha=share * pixels / (pixels - 1))
    return torch.stack([mean, 1 / torch.sqrt(variance + norm.eps)]), batch


Term = tuple[int, Tensor, Tensor, bool]


def _terms(edge: Edge, zs: Sequence[Z], tensors: Sequence[Tensor]) -> list[Term]:
    """Return (operation, z, norm, batch) of everything that is summed, by operation."""
    queue = list(zs)
    finals = [queue.pop(0) for _ in edge.chains]
    for b, chain in enumerate(edge.chains):
        for _ in chain.stages[1:]:
            finals[b] = queue.pop(0)
    owners = [*edge.chains, *edge.pools, *edge.reduces]
    terms = [(o.op, z.z, z.norm, z.batch) for o, z in zip(owners, [*finals, *queue], strict=True)]
    if edge.skips or edge.extras:
        C = (zs[0].z if zs else tensors[0]).shape[-1]
        plain = torch.stack([tensors[0].new_zeros(C), tensors[0].new_ones(C)])
        terms += [(k, tensors[0], plain, False) for k in edge.skips]
        extras = edge.split(tensors[1:])[2]
        terms += [(k, extra, plain, False) for k, extra in zip(edge.extras, extras, strict=True)]
    return sorted(terms, key=lambda term: term[0])


def _mix(
    edge: Edge, zs: Sequence[Z], tensors: Sequence[Tensor], row: Tensor, base: Tensor | None
) -> Tensor | None:
    terms = _terms(edge, zs, tensors)
    if not terms:
        return base
    mean, rstd = torch.stack([norm for _, _, norm, _ in terms], 1)
    index = [k for k, _, _, _ in terms]
    return kernels.mixed_sum([z for _, z, _, _ in terms], mean, rstd, row[index], base)


def _edge_backward(
    edge: Edge, zs: Sequence[Z], tensors: Sequence[Tensor], row: Tensor, g: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the gradients of the edge's mixing weights and of its tensors."""
    terms = _terms(edge, zs, tensors)
    d_row = torch.zeros_like(row)
    if not terms:
        return d_row, [None] * len(tensors)
    index = [k for k, _, _, _ in terms]
    mean, rstd = torch.stack([norm for _, _, norm, _ in terms], 1)
    d_row[index], means = kernels.mixed_sum_backward(g, [z for _, z, _, _ in terms], mean, rstd)
    own = torch.tensor([batch for _, _, _, batch in terms])[:, None].to(rstd)
    # dz = k * ((g - m) - (z - mu) * r); without batch statistics m and r are 0
    coef = torch.stack([means[0] * own, mean, means[1:] * rstd * own, row[index][:, None] * rstd], 1)
    by_op = dict(zip(index, coef, strict=True))

    x = tensors[0]
    dx = None
    if needed[0]:
        for k in edge.skips:
            dx = g * row[k] if dx is None else dx + g * row[k]
        if edge.pools:
            dx = _pools_backward(edge, zs, x, g, by_op, dx)
    wanted = any(needed[1 : len(tensors) - len(edge.extras)])
    dx, chain_grads = _chains_backward(edge, zs, tensors, g, by_op, dx, needed[0], wanted)
    dx, reduce_grads = _reduces_backward(edge, zs, tensors, g, by_op, dx, needed[0], wanted)
    if needed[0] and dx is None:
        dx = torch.zeros_like(x)
    extra_grads = [g * row[k] for k in edge.extras]
    gradients = [dx, *chain_grads, *reduce_grads, *extra_grads]
    return d_row, [d if need else None for d, need in zip(gradients, needed, strict=True)]


def _pools_backward(
    edge: Edge, zs: Sequence[Z], x: Tensor, g: Tensor, coef: dict[int, Tensor], base: Tensor | None
) -> Tensor:
    start = len(edge.chains) + sum(len(chain.stages) - 1 for chain in edge.chains)
    halves: list[Tensor | None] = [None, None]
    z = [zs[start].z] * 2
    for pool, one in zip(edge.pools, zs[start:], strict=False):
        z[pool.half] = one.z
        halves[pool.half] = coef[pool.op] if halves[pool.half] is None else halves[pool.half]
    both = torch.stack([c if c is not None else torch.zeros_like(coef[edge.pools[0].op]) for c in halves])
    return kernels.pool3x3_backward([g, g], z, both, x, edge.stride, base)


def _chains_backward(
    edge: Edge,
    zs: Sequence[Z],
    tensors: Sequence[Tensor],
    g: Tensor,
    coef: dict[int, Tensor],
    base: Tensor | None,
    input_grad: bool,
    weight_grads: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return dx (on top of base) and the weights' gradients in the order of the edge's tensors."""
    if not edge.chains or not (input_grad or weight_grads):
        return base, [None] * sum(s.weights for chain in edge.chains for s in chain.stages)
    weights, _, _ = edge.split(tensors[1:])
    firsts, seconds = zs[: len(edge.chains)], iter(zs[len(edge.chains) :])
    gs, coefs, later = [], [], []
    for chain, first, stage_weights in zip(edge.chains, firsts, weights, strict=True):
        if len(chain.stages) == 1:
            gs.append(g)
            coefs.append(coef[chain.op])
            later.append([])
            continue
        second, one = next(seconds), _arguments(stage_weights[1:], chain.stages[1:])
        dn, d_depthwise, d_pointwise, means = kernels.branch_conv_backward(
            [g],
            [second.z],
            coef[chain.op][None],
            first.z,
            first.norm,
            *one,
            1,
            True,
            None,
            True,
            weight_grads,
        )
        own = means * first.batch
        mu, rho = first.norm
        gs.append(dn)
        coefs.append(torch.stack([own[0], mu, own[1] * rho, rho]))
        later.append([*d_depthwise, *d_pointwise])
    stages = [chain.stages[0] for chain in edge.chains]
    dx, d_depthwise, d_pointwise, _ = kernels.branch_conv_backward(
        gs,
        [first.z for first in firsts],
        torch.stack(coefs),
        tensors[0],
        None,
        *_arguments([w[0] for w in weights], stages),
        edge.stride,
        edge.relu,
        base,
        input_grad,
        weight_grads,
    )
    if not weight_grads:
        return dx, [None] * sum(s.weights for chain in edge.chains for s in chain.stages)
    gradients: list[Tensor | None] = []
    for b, stage in enumerate(stages):
        gradients += [d_depthwise[b]] if stage.weights == 2 else []
        gradients += [d_pointwise[b], *later[b]]
    return dx if input_grad else base, gradients


def _reduces_backward(
    edge: Edge,
    zs: Sequence[Z],
    tensors: Sequence[Tensor],
    g: Tensor,
    coef: dict[int, Tensor],
    dx: Tensor | None,
    input_grad: bool,
    weight_grads: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    gradients: list[Tensor | None] = []
    _, pairs, _ = edge.split(tensors[1:])
    if not (input_grad or weight_grads):
        return dx, [None] * 2 * len(pairs)
    x = tensors[0]
    for reduce, pair, z in zip(edge.reduces, pairs, zs[len(zs) - len(pairs) :], strict=True):
        if input_grad and dx is None:
            dx = torch.zeros_like(x)
        half, start = pair[0].shape[0], 0
        for view, weight in zip(_shifted(x), pair, strict=True):
            part = slice(start, start + half)
            d_view, _, d_weight, _ = kernels.branch_conv_backward(
                [g[..., part]],
                [z.z[..., part]],
                coef[reduce.op][None, :, part],
                view,
                None,
                [],
                [weight],
                [],
                2,
                True,
                None,
                input_grad,
                weight_grads,
            )
            if input_grad:
                _shifted(dx)[start > 0].add_(d_view)
            gradients += d_weight if weight_grads else [None]
            start += half
    return dx, gradients
