"""PC-DARTS: a part of the channels, and edges that are weighed too (Xu et al., ICLR 2020).

Of an edge's C channels the first C / K go through the mixed operation, the others around it (equation 2);
then the channels are shuffled, so that the next edge takes others. What arrives at a node j is weighed edge
by edge (equation 3): with p(o) = softmax(alpha) and p(i) = softmax of the betas of the edges into j,

    x_j = sum over i of p(i) * f_i(x_i),  f_i(x) = shuffle([sum over o of p(o) * o(x[: C / K]), x[C / K :]]).

The genotype goes by p(i) * p(o). The public code takes no step of the alphas in its first 15 epochs
(``--warmup_epochs 15``), a batch of 256, and the learning rates 0.1 and 6e-4. Where an edge has stride 2,
what goes around is max-pooled, 2x2, as there.

Differences from the public code: none in what is computed. On CPUs the nodes of a cell are one program;
elsewhere an edge's mixed operation is served as that of a model of others
(:func:`dartsfast.descendants.accelerate`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.cnn.edges import serve_edges
from dartsfast.cnn.model_search import Cell, MixedOp, Network
from dartsfast.errors import InputError
from dartsfast.modules.arch import initial_alphas
from dartsfast.modules.plain import difference, served


@served
class PartialMixedOp(nn.Module):
    """The mixed operation of an edge on the first 1 / ``share`` of its channels.

    Raises:
        InputError: channels that cannot be shared.
    """

    has_kernels = True  # of its own, where it is no part of its cell's program

    def __init__(self, C: int, stride: int, primitives: Sequence[str], *, share: int) -> None:
        super().__init__()
        if C % share:
            raise InputError(f"{C} channels cannot be cut into {share} equal parts: choose another pc_share")
        self.share = share
        self.mixed = MixedOp(C // share, stride, primitives)

    def altered(self) -> str | None:
        """Say how this differs from what kernels compute in its place; None where it does not."""
        return difference(self, PartialMixedOp) or difference(self.mixed, MixedOp)

    def around(self, x: Tensor) -> Tensor:
        """Return what arrives of the channels that are not mixed, those ``x`` of the source."""
        return x if self.mixed.stride == 1 else F.max_pool2d(x, 2)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Map ``x`` [N, C, H, W] by p(i) * p(o) [ops], and p(i) last, to [N, C, H/stride, W/stride]."""
        part = x.shape[1] // self.share
        through, around = self.mixed(x[:, :part], weights[:-1]), self.around(x[:, part:])
        return F.channel_shuffle(torch.cat([through, weights[-1] * around], dim=1), self.share)


class PCDARTS(Network):
    """The search network of PC-DARTS.

    Args:
        arguments, options: of :class:`~dartsfast.cnn.model_search.Network`.
        share: K, of whose parts of the channels one is mixed.
    """

    betas_normal: Tensor
    betas_reduce: Tensor

    def __init__(self, *arguments: Any, share: int, **options: Any) -> None:
        super().__init__(*arguments, mixed_op=functools.partial(PartialMixedOp, share=share), **options)
        self._share = share
        serve_edges(self, [cast(Any, edge).mixed for cell in self.cells for edge in cast(Cell, cell)._ops])

    def _build(self, *arguments: Any, **options: Any) -> Network:
        return PCDARTS(*arguments, share=self._share, **options)

    def _initialize_alphas(self) -> None:
        super()._initialize_alphas()
        for name, alphas in (("betas_normal", self.alphas_normal), ("betas_reduce", self.alphas_reduce)):
            self.add_arch_parameter(name, initial_alphas(len(alphas), 1)[:, 0].to(alphas))

    def edge_weights(self, reduction: bool) -> Tensor:
        """Return p(i), [edges, 1], of which those into a node add up to 1."""
        betas = self.betas_reduce if reduction else self.betas_normal
        into = betas.split([2 + i for i in range(self._steps)])
        return torch.cat([F.softmax(node, dim=-1) for node in into])[:, None]

    def mixing_weights(self, kinds: Sequence[bool]) -> list[Tensor]:
        """Return p(i) * p(o) and, in a column of its own, p(i): [edges, ops + 1] a kind."""
        edges = [self.edge_weights(kind) for kind in kinds]
        operations = super().mixing_weights(kinds)
        return [torch.cat([p * i, i], dim=1) for p, i in zip(operations, edges, strict=True)]

    def strengths(self, reduction: bool) -> Tensor:
        """Return p(i) * p(o), [edges, ops]."""
        return super().strengths(reduction) * self.edge_weights(reduction).detach()
