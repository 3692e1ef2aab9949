"""``norm_stats`` beside plain expressions: what batch norm does to statistics, not to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.op_cases.case import OURS, STOCK, Case, Peers, Timed, drawing, no_grad
from dartsfast.ops import norm_stats_, norm_stats_backward

MOMENTUM, EPSILON = 0.1, 1e-5


def norm_cases(*, quick: bool = False) -> list[Case]:
    """Return the four norms of an edge's first stages; so small that launches are all they cost."""
    return [norm_case(*((2, 5) if quick else (4, 16)))]


def norm_case(norms: int, C: int, pixels: int = 1000) -> Case:
    """Batch norms of ``C`` channels each."""

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        stats, norm = (draw(norms, 2, C).abs() for _ in range(2))
        g_mean, g_zhat_mean, weights = draw(norms, C), draw(norms, C), draw(norms)
        own = torch.ones_like(weights)
        means, variances = ([draw(C).abs() for _ in range(norms)] for _ in range(2))
        batches = [torch.zeros([], dtype=torch.int64, device=device) for _ in range(norms)]

        def ours() -> Tensor:
            return norm_stats_(stats, means, variances, batches, MOMENTUM, EPSILON, pixels)

        def stock() -> Tensor:
            torch._foreach_add_(batches, 1)
            shares = MOMENTUM, MOMENTUM * pixels / (pixels - 1)
            for moved, new, share in zip((means, variances), stats.unbind(1), shares, strict=True):
                torch._foreach_mul_(moved, 1 - MOMENTUM)
                torch._foreach_add_(moved, list(new), alpha=share)
            return torch.stack([stats[:, 0], (stats[:, 1] + EPSILON).rsqrt()], 1)

        def stock_backward() -> Tensor:
            mean, rstd = norm.unbind(1)
            flows = own[:, None]
            return torch.stack([g_mean * flows, mean, g_zhat_mean * rstd * flows, weights[:, None] * rstd], 1)

        backward = no_grad(lambda: norm_stats_backward(g_mean, g_zhat_mean, norm, weights, own))
        return {
            "forward": {OURS: _timed(no_grad(ours)), STOCK: _timed(no_grad(stock))},
            "backward": {OURS: _timed(backward), STOCK: _timed(no_grad(stock_backward))},
        }

    return Case("norm_stats", f"{norms} norms, C={C}", build)


def _timed(call: Callable[[], Tensor]) -> Timed:
    return Timed(call, _view)


def _view(out: Tensor) -> Sequence[Tensor]:
    return [out]
