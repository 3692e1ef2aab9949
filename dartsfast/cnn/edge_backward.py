"""The gradients of an edge of a CNN cell, on the fused operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dartsfast.cnn.edge import Edge, Flags, Kept, arguments, batch_norms, no_norm, shifted, summed

kernels = torch.ops.dartsfast


def _scaled(g: Tensor, scale: Tensor, base: Tensor | None) -> Tensor:
    """Return g * scale, on top of ``base``, with ``scale`` [1]."""
    mean, rstd = no_norm(1, g.shape[-1], g.dtype, g.device).unbind(1)
    return kernels.mixed_sum([g], mean, rstd, scale, base)


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

    def run(self, weights: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of the mixing weights [operations] and of the edge's tensors."""
        edge, g = self.edge, self.g
        if not edge.ops:
            return weights, [None] * len(self.tensors)
        mean, rstd = self.kept.final.unbind(1)
        d_weights, means = kernels.mixed_sum_backward(g, summed(edge, self.kept, self.tensors), mean, rstd)
        batch = batch_norms(self.flags.final, g.dtype, g.device)
        coef = kernels.norm_stats_backward(
            means[:1].expand(len(mean), -1), means[1:], self.kept.final, weights, batch
        )
        plain = len(edge.ops) - edge.skips - edge.extras
        scales = list(weights[plain:, None])
        dx = None
        if self.input_grad:
            for scale in scales[: edge.skips]:
                dx = _scaled(g, scale, dx)
            dx = self._pools(coef, dx)
        dx, gradients = self._chains(coef, dx)
        dx, reduced = self._reduces(coef[plain - len(edge.reduces) : plain], dx)
        gradients += reduced
        if self.input_grad and dx is None:
            dx = torch.zeros_like(self.x, dtype=g.dtype)
        found = [dx, *gradients, *(_scaled(g, scale, None) for scale in scales[edge.skips :])]
        return d_weights, [d if need else None for d, need in zip(found, self.needed, strict=True)]

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
        gs, inner, second = [], [], []
        for b, (_, stage) in enumerate(edge.separable):
            dn, d_depthwise, d_pointwise, means = kernels.branch_conv_backward(
                [self.g], [kept.second[b]], coef[b : b + 1], kept.first[b], kept.inner[b],
                *arguments([self.second[b]], [stage]), 1, True, None, True, self.weight_grads,
            )  # fmt: skip
            gs.append(dn)
            inner.append(means)
            second += [*d_depthwise, *d_pointwise]
        gs += [self.g] * len(edge.single)
        both = coef[count : len(edge.first)]
        if inner:
            batch = batch_norms(self.flags.inner, coef.dtype, coef.device)
            g_mean, g_zhat_mean = torch.stack(inner, 1)
            both = torch.cat(
                [kernels.norm_stats_backward(g_mean, g_zhat_mean, kept.inner, None, batch), both]
            )
        new, d_depthwise, d_pointwise, _ = kernels.branch_conv_backward(
            gs, list(kept.first.unbind()), both, self.x, None, *arguments(self.first, edge.first),
            edge.stride, edge.relu, dx, self.input_grad, self.weight_grads,
        )  # fmt: skip
        if not self.weight_grads:
            return new, [None] * weights
        pairs = zip(d_depthwise, d_pointwise, strict=True) if d_depthwise else zip(d_pointwise)
        first = [w for pair in pairs for w in pair]
        return new if self.input_grad else dx, first + second

    def _reduces(self, coef: Tensor, dx: Tensor | None) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return dx on top of the given one, and the weights' gradients."""
        gradients: list[Tensor | None] = []
        if not (self.input_grad or self.weight_grads):
            gradients += [None] * 2 * len(self.reduces)
            return dx, gradients
        for k, z, pair in zip(coef, self.kept.reduced, self.reduces, strict=True):
            half = pair[0].shape[0]
            for i, view in enumerate(shifted(self.x)):
                part = slice(i * half, (i + 1) * half)
                # The first view is all of x, so that its kernel adds; the second is added to a part of dx.
                d_view, _, d_weight, _ = kernels.branch_conv_backward(
                    [self.g[..., part]], [z[..., part]], k[None, :, part], view, None, [], [pair[i]], [],
                    2, True, None if i else dx, self.input_grad, self.weight_grads,
                )  # fmt: skip
                if self.input_grad and i == 0:
                    dx = d_view
                elif dx is not None and self.input_grad:
                    shifted(dx)[i].add_(d_view)
                gradients += d_weight if self.weight_grads else [None]
        return dx, gradients
