"""A node of a CNN cell, x_i = sum over edges and operations of w * BN(op(x_j)), as one autograd node.

Kept for the backward are the convolutions' pre-norm outputs z and the channel statistics (``"store"``), or
the node's inputs and the statistics only (``"recompute"``: z is computed again, edge by edge). The
backward makes one pass over the gradient g and the z of an edge, which gives the gradients of the
mixing weights and all that batch norm needs; the convolutions form dz from g and z as they read them.
Images are [N, H, W, C].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.cnn.statistics import normalise
from dartsfast.errors import InputError

kernels = torch.ops.dartsfast


@dataclass
class Stage:
    """[relu] -> depthwise -> pointwise -> batch norm; one weight: no depthwise."""

    weights: int
    dilation: int
    norm: nn.BatchNorm2d


@dataclass
class Edge:
    """What an edge computes from its source, without tensors; each list is in the order of the sum.

    Attributes:
        ops: the operations' columns in the mixing weights: those of ``separable``, ``single``,
            ``pools``, ``reduces``, skips and extras, one after the other.
        stride: of first stages and pools.
        relu: whether first stages begin with relu.
        separable: chains of two stages.
        single: chains of one stage.
        pools: half of pool3x3, 0 maximum or 1 average, and its norm.
        reduces: norms of operations of two strided 1x1 convolutions, the second shifted by a pixel.
        skips: how many operations are the source itself.
        extras: how many are outputs of ordinary modules.
    """

    ops: tuple[int, ...]
    stride: int
    relu: bool = True
    separable: list[tuple[Stage, Stage]] = field(default_factory=list)
    single: list[Stage] = field(default_factory=list)
    pools: list[tuple[int, nn.BatchNorm2d]] = field(default_factory=list)
    reduces: list[nn.BatchNorm2d] = field(default_factory=list)
    skips: int = 0
    extras: int = 0

    @property
    def first(self) -> list[Stage]:
        """The stages that read the source."""
        return [stage for stage, _ in self.separable] + self.single

    def split(
        self, tensors: Sequence[Any]
    ) -> tuple[Any, list[list[Any]], list[list[Any]], list[list[Any]], list[Any]]:
        """Split what belongs to an edge's tensors: x, weights of first and second stages, reduces, extras."""
        left = list(tensors)
        take = lambda n: [left.pop(0) for _ in range(n)]  # noqa: E731
        x = left.pop(0)
        first = [take(stage.weights) for stage in self.first]
        second = [take(stage.weights) for _, stage in self.separable]
        return x, first, second, [take(2) for _ in self.reduces], left


@dataclass
class Kept:
    """The pre-norm outputs of an edge and their mean and 1 / std."""

    inner: Tensor  # [separable, 2, C]
    final: Tensor  # [ops, 2, C], in the order of the sum
    first: Any = None  # [first, N, Ho, Wo, C]
    second: list[Tensor] = field(default_factory=list)
    pooled: Any = None  # [2, N, Ho, Wo, C]
    reduced: list[Tensor] = field(default_factory=list)

    def tensors(self) -> list[Tensor | None]:
        """Return everything as one list, for ``save_for_backward``."""
        return [self.inner, self.final, self.first, self.pooled, *self.second, *self.reduced]

    @staticmethod
    def of(edge: Edge, tensors: Sequence[Any]) -> Kept:
        """Undo :meth:`tensors`."""
        inner, final, first, pooled, *rest = tensors
        count = len(edge.separable)
        return Kept(inner, final, first, list(rest[:count]), pooled, list(rest[count:]))


Pooled = tuple[Tensor, Tensor]


def node(
    edges: Sequence[Edge],
    tensors: Sequence[Sequence[Tensor]],
    pooled: Sequence[Pooled | None],
    weights: Tensor,
    memory: str,
) -> Tensor:
    """Return the sum over ``edges`` of weights[edge, op] * BN(op(x)), [N, H, W, C].

    Args:
        edges: the plans.
        tensors: an edge's source x [N, H, W, C], weights and outputs of ordinary modules, as
            :meth:`Edge.split` takes them.
        pooled: pool3x3 of the source, where the edge has pools.
        weights: [edges, ops].
        memory: ``store`` or ``recompute``.

    Raises:
        InputError: no edge has an operation other than none, or batch norm over one value.
    """
    sizes = [len(group) for group in tensors]
    # Under autocast some come in half precision; the kernels have float32 and float64.
    flat = [t.to(weights.dtype) for group in tensors for t in group]
    return _Node.apply(list(edges), list(pooled), sizes, memory, weights, *flat)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        edges: list[Edge],
        pooled: list[Pooled | None],
        sizes: list[int],
        memory: str,
        weights: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        out, kept, batch = None, [], []
        for edge, pool, row, group in zip(edges, pooled, weights, _groups(tensors, sizes), strict=True):
            found, own = run(edge, group, pool)
            if edge.ops:
                mean, rstd = found.final.unbind(1)
                out = kernels.mixed_sum(_summed(edge, found, group), mean, rstd, row[_index(edge.ops)], out)
            if memory == "recompute":
                found = Kept(found.inner, found.final)
            found.pooled = None  # cheaper to compute again than to keep
            kept.append(found.tensors())
            batch.append(own)
        if out is None:
            raise InputError("a node needs an operation other than none on one of its edges")
        ctx.edges, ctx.sizes, ctx.memory, ctx.batch = edges, sizes, memory, batch
        ctx.kept = [len(k) for k in kept]
        ctx.save_for_backward(weights, *tensors, *(t for k in kept for t in k))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        weights, *saved = ctx.saved_tensors
        count = sum(ctx.sizes)
        groups, kept = _groups(saved[:count], ctx.sizes), _groups(saved[count:], ctx.kept)
        needed = _groups(ctx.needs_input_grad[5:], ctx.sizes)
        d_weights = torch.zeros_like(weights)
        gradients: list[Tensor | None] = []
        for i, edge in enumerate(ctx.edges):
            found = Kept.of(edge, kept[i])
            if ctx.memory == "recompute":
                found, _ = run(edge, groups[i], None, found)
            elif edge.pools:
                found.pooled, _ = kernels.pool3x3(groups[i][0], edge.stride)
            backward = EdgeBackward(edge, found, ctx.batch[i], groups[i], needed[i], g)
            gradients += backward.run(weights[i], d_weights[i])
        return None, None, None, None, d_weights, *gradients


def _groups(tensors: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    groups, start = [], 0
    for size in sizes:
        groups.append(tensors[start : start + size])
        start += size
    return groups


@functools.cache
def _index(ops: tuple[int, ...]) -> Tensor:
    return torch.tensor(ops)


@functools.cache
def _own(flags: tuple[bool, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(flags, dtype=dtype)[:, None]


@functools.cache
def _plain(count: int, C: int, dtype: torch.dtype) -> Tensor:
    return torch.stack([torch.zeros(count, C, dtype=dtype), torch.ones(count, C, dtype=dtype)], 1)


@dataclass
class Flags:
    """Which norms are the batch's own: their gradient flows through mean and variance."""

    inner: tuple[bool, ...] = ()
    final: tuple[bool, ...] = ()


def _pixels(z: Tensor) -> int:
    return z.shape[-4] * z.shape[-3] * z.shape[-2]


def run(
    edge: Edge, tensors: Sequence[Tensor], pooled: Pooled | None, known: Kept | None = None
) -> tuple[Kept, Flags]:
    """Compute every z of an edge and its norms; given ``known`` norms, for the second time, only the z."""
    x, first_weights, second_weights, reduce_weights, _ = edge.split(tensors)
    count = len(edge.separable)
    z = Kept(x, x) if known is None else Kept(known.inner, known.final)
    flags = Flags()
    single, finals = None, []

    def norm(modules: Sequence[nn.BatchNorm2d], stats: Tensor, of: Tensor) -> None:
        if known is None:
            found, own = normalise(modules, stats, _pixels(of))
            finals.append(found)
            flags.final += own

    if edge.first:
        z.first, stats = kernels.branch_conv(
            x, None, *_arguments(first_weights, edge.first), edge.stride, edge.relu
        )
        if known is None:
            found, own = normalise([stage.norm for stage in edge.first], stats, _pixels(z.first))
            z.inner, single, flags.inner = found[:count], found[count:], own
    for b, (_, stage) in enumerate(edge.separable):
        second, stats = kernels.branch_conv(
            z.first[b], z.inner[b], *_arguments([second_weights[b]], [stage]), 1, True
        )
        z.second.append(second[0])
        norm([stage.norm], stats, second)
    if single is not None:
        finals.append(single)
        flags.inner, flags.final = flags.inner[:count], flags.final + flags.inner[count:]
    if edge.pools:
        z.pooled, stats = kernels.pool3x3(x, edge.stride) if pooled is None else pooled
        norm([module for _, module in edge.pools], stats[[half for half, _ in edge.pools]], z.pooled)
    for module, pair in zip(edge.reduces, reduce_weights, strict=True):
        parts = [
            kernels.branch_conv(view, None, [], [w], [], 2, True)
            for view, w in zip(_shifted(x), pair, strict=True)
        ]
        z.reduced.append(torch.cat([part[0] for part, _ in parts], -1))
        norm([module], torch.cat([stats for _, stats in parts], -1), z.reduced[-1])
    if known is None:
        plain = edge.skips + edge.extras
        finals += [_plain(plain, _channels(z, tensors), x.dtype).to(x.device)] if plain else []
        flags.final += (False,) * plain
        z.final = torch.cat(finals) if finals else x.new_empty(0)
    return z, flags


def _channels(z: Kept, tensors: Sequence[Tensor]) -> int:
    # Every output of an edge has as many channels, and the source too where there is a skip.
    return (tensors[0] if z.first is None else z.first).shape[-1]


def _arguments(
    weights: list[list[Tensor]], stages: list[Stage]
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Return depthwise, pointwise and dilation as branch_conv takes them."""
    depthwise = [w[0] for w in weights if len(w) == 2]
    return depthwise, [w[-1] for w in weights], [s.dilation for s in stages] if depthwise else []


def _shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x[:, 1:, 1:]


def _summed(edge: Edge, z: Kept, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the images that the edge adds, in the order of the sum."""
    count = len(edge.separable)
    single = [] if z.first is None else list(z.first[count:])
    pools = [] if z.pooled is None else [z.pooled[half] for half, _ in edge.pools]
    extras = list(tensors[len(tensors) - edge.extras :])
    return [*z.second, *single, *pools, *z.reduced, *[tensors[0]] * edge.skips, *extras]


class EdgeBackward:
    """The gradients of one edge, from the gradient g of its node."""

    def __init__(
        self,
        edge: Edge,
        kept: Kept,
        flags: Flags,
        tensors: Sequence[Tensor],
        needed: Sequence[bool],
        g: Tensor,
    ) -> None:
        self.edge, self.kept, self.flags, self.g = edge, kept, flags, g
        self.tensors, self.needed = tensors, needed
        self.x, self.first, self.second, self.reduces, _ = edge.split(tensors)
        self.input_grad = needed[0]
        self.weight_grads = any(needed[1 : len(needed) - edge.extras])

    def run(self, row: Tensor, d_row: Tensor) -> list[Tensor | None]:
        """Return the gradients of the edge's tensors; write that of the mixing weights to ``d_row``."""
        edge, g = self.edge, self.g
        if not edge.ops:
            return [None] * len(self.tensors)
        mean, rstd = self.kept.final.unbind(1)
        index = _index(edge.ops)
        d, means = kernels.mixed_sum_backward(g, _summed(edge, self.kept, self.tensors), mean, rstd)
        d_row[index] = d
        w = row[index][:, None]
        own = _own(self.flags.final, g.dtype).to(g.device)
        # dz = k * ((g - m) - (z - mu) * r); m and r are 0 where mean and variance are not the batch's
        coef = torch.stack([means[0] * own, mean, means[1:] * rstd * own, w * rstd], 1)
        plain = len(edge.ops) - edge.skips - edge.extras
        scales = list(w[plain:])
        dx = None
        if self.input_grad:
            for scale in scales[: edge.skips]:
                dx = g * scale if dx is None else dx + g * scale
            dx = self._pools(coef, dx)
        dx, gradients = self._chains(coef, dx)
        if self.input_grad and dx is None:
            dx = torch.zeros_like(self.x)
        gradients += self._reduces(coef[plain - len(edge.reduces) : plain], dx)
        found = [dx, *gradients, *(g * scale for scale in scales[edge.skips :])]
        return [d if need else None for d, need in zip(found, self.needed, strict=True)]

    def _pools(self, coef: Tensor, dx: Tensor | None) -> Tensor | None:
        if not self.edge.pools:
            return dx
        start = len(self.edge.first)
        both = [torch.zeros_like(coef[0])] * 2
        for i, (half, _) in enumerate(self.edge.pools):
            both[half] = coef[start + i]
        z = list(self.kept.pooled.unbind())
        return kernels.pool3x3_backward([self.g, self.g], z, torch.stack(both), self.x, self.edge.stride, dx)

    def _chains(self, coef: Tensor, dx: Tensor | None) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return dx on top of the given one, and the weights' gradients."""
        edge, kept = self.edge, self.kept
        weights = sum(len(w) for w in [*self.first, *self.second])
        if not edge.first or not (self.input_grad or self.weight_grads):
            return dx, [None] * weights
        count = len(edge.separable)
        gs, coefs, second = [], [], []
        own = _own(self.flags.inner, coef.dtype).to(coef.device)
        for b, (_, stage) in enumerate(edge.separable):
            dn, d_depthwise, d_pointwise, means = kernels.branch_conv_backward(
                [self.g], [kept.second[b]], coef[b : b + 1], kept.first[b], kept.inner[b],
                *_arguments([self.second[b]], [stage]), 1, True, None, True, self.weight_grads,
            )  # fmt: skip
            mu, rho = kept.inner[b]
            gs.append(dn)
            coefs.append(torch.stack([means[0] * own[b], mu, means[1] * rho * own[b], rho]))
            second += [*d_depthwise, *d_pointwise]
        gs += [self.g] * len(edge.single)
        both = (
            torch.cat([torch.stack(coefs), coef[count : len(edge.first)]])
            if coefs
            else coef[: len(edge.first)]
        )
        new, d_depthwise, d_pointwise, _ = kernels.branch_conv_backward(
            gs, list(kept.first.unbind()), both, self.x, None, *_arguments(self.first, edge.first),
            edge.stride, edge.relu, dx, self.input_grad, self.weight_grads,
        )  # fmt: skip
        if not self.weight_grads:
            return new, [None] * weights
        pairs = zip(d_depthwise, d_pointwise, strict=True) if d_depthwise else zip(d_pointwise)
        first = [w for pair in pairs for w in pair]
        return new if self.input_grad else dx, first + second

    def _reduces(self, coef: Tensor, dx: Tensor | None) -> list[Tensor | None]:
        """Add to dx in place and return the weights' gradients."""
        gradients: list[Tensor | None] = []
        if not (self.input_grad or self.weight_grads):
            gradients += [None] * 2 * len(self.reduces)
            return gradients
        for k, z, pair in zip(coef, self.kept.reduced, self.reduces, strict=True):
            half = pair[0].shape[0]
            for i, view in enumerate(_shifted(self.x)):
                part = slice(i * half, (i + 1) * half)
                d_view, _, d_weight, _ = kernels.branch_conv_backward(
                    [self.g[..., part]], [z[..., part]], k[None, :, part], view, None, [], [pair[i]], [],
                    2, True, None, self.input_grad, self.weight_grads,
                )  # fmt: skip
                if dx is not None:
                    _shifted(dx)[i].add_(d_view)
                gradients += d_weight if self.weight_grads else [None]
        return gradients
