"""An edge of a CNN cell: what it computes from its source, and that on the fused operators.

Images are [N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast.cnn.statistics import normalise
from dartsfast.constants import constant

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
        storage: dtype of the convolutions' z; None for that of the source.
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
    storage: torch.dtype | None = None

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


@constant
def columns(ops: tuple[int, ...], device: torch.device) -> Tensor:
    """Return ``ops`` as a tensor: made once, so that no iteration copies to a device."""
    return torch.tensor(ops, device=device)


@constant
def batch_norms(flags: tuple[bool, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [norms], 1 where a norm is the batch's own."""
    return torch.tensor(flags, dtype=dtype, device=device)


@constant
def no_norm(count: int, C: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [count, 2, C], mean 0 and 1 / std 1."""
    return torch.tensor([0.0, 1.0], dtype=dtype, device=device)[:, None].repeat(count, 1, C)


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
    none = x.new_empty(0)
    z = Kept(none, none) if known is None else Kept(known.inner, known.final)
    flags = Flags()
    single, finals = None, []

    def norm(modules: Sequence[nn.BatchNorm2d], stats: Tensor, of: Tensor) -> None:
        if known is None:
            found, own = normalise(modules, stats, _pixels(of))
            finals.append(found)
            flags.final += own

    if edge.first:
        z.first, stats = kernels.branch_conv(
            x, None, *arguments(first_weights, edge.first), edge.stride, edge.relu, edge.storage
        )
        if known is None:
            found, own = normalise([stage.norm for stage in edge.first], stats, _pixels(z.first))
            z.inner, single, flags.inner = found[:count], found[count:], own
    for b, (_, stage) in enumerate(edge.separable):
        second, stats = kernels.branch_conv(
            z.first[b], z.inner[b], *arguments([second_weights[b]], [stage]), 1, True, edge.storage
        )
        z.second.append(second[0])
        norm([stage.norm], stats, second)
    if single is not None:
        finals.append(single)
        flags.inner, flags.final = flags.inner[:count], flags.final + flags.inner[count:]
    if edge.pools:
        z.pooled, stats = kernels.pool3x3(x, edge.stride) if pooled is None else pooled
        norm(
            [module for _, module in edge.pools],
            stats[columns(tuple(half for half, _ in edge.pools), x.device)],
            z.pooled,
        )
    for module, pair in zip(edge.reduces, reduce_weights, strict=True):
        parts = [
            kernels.branch_conv(view, None, [], [w], [], 2, True, edge.storage)
            for view, w in zip(shifted(x), pair, strict=True)
        ]
        z.reduced.append(torch.cat([part[0] for part, _ in parts], -1))
        norm([module], torch.cat([stats for _, stats in parts], -1), z.reduced[-1])
    if known is None:
        plain = edge.skips + edge.extras
        if plain:
            C = summed(edge, z, tensors)[0].shape[-1]
            finals.append(no_norm(plain, C, x.dtype, x.device))
        flags.final += (False,) * plain
        z.final = torch.cat(finals) if finals else none
    return z, flags


def arguments(
    weights: list[list[Tensor]], stages: list[Stage]
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Return depthwise, pointwise and dilation as branch_conv takes them."""
    depthwise = [w[0] for w in weights if len(w) == 2]
    return depthwise, [w[-1] for w in weights], [s.dilation for s in stages] if depthwise else []


def shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the two convolutions of a factorized reduction read."""
    return x, x[:, 1:, 1:]


def summed(edge: Edge, z: Kept, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the images that the edge adds, in the order of the sum."""
    count = len(edge.separable)
    single = [] if z.first is None else list(z.first[count:])
    pools = [] if z.pooled is None else [z.pooled[half] for half, _ in edge.pools]
    extras = list(tensors[len(tensors) - edge.extras :])
    return [*z.second, *single, *pools, *z.reduced, *[tensors[0]] * edge.skips, *extras]
