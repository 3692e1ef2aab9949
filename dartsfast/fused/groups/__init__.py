"""How instructions that are alike become launches of grouped kernels, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dartsfast.fused.groups import backward, forward, sums

PLANS: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "branch_conv": (forward.conv_alike, forward.conv),
    "pool3x3": (forward.pool_alike, forward.pool),
    "norm_stats": (forward.norms_alike, forward.norms),
    "mixed_sum": (sums.by_shape, sums.mixed),
    "mixed_sum_backward": (sums.by_gradient, sums.mixed_backward),
    "norm_stats_backward": (sums.coefs_alike, sums.coefs),
    "branch_conv_backward": (backward.conv_alike, backward.conv),
    "pool3x3_backward": (backward.pool_alike, backward.pool),
    "add": (sums.by_shape, sums.add),
    "zero": (sums.by_shape, sums.zero),
    "copy": (sums.copy_alike, sums.copy),
}
"""For every operator: what must be equal within a launch, and a function that adds the launches to a plan."""
