"""Timing of peers that take turns, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from bench.device import Device

Times = dict[str, float]


def interleaved(
    peers: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: Device,
    *,
    sample_seconds: float = 0.0,
) -> dict[str, Times]:
    """Time ``peers`` in turn, A B C A B C ..., and return the spread of each one's ``repeats`` samples.

    Args:
        peers: what to call; every peer warms up with a call before.
        repeats: samples a peer.
        device: what they run on.
        sample_seconds: call as often within a sample as takes this long, for calls that are short
            against the clock, and against what the peer before left in the caches.

    Returns:
        A name's ``ms_p20``, ``ms_p50`` and ``ms_p80``, milliseconds a call.
    """
    calls = {}
    for name, peer in peers.items():
        peer()
        calls[name] = max(1, round(sample_seconds / device.seconds(peer, 1))) if sample_seconds else 1
    samples: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repeats):
        for name, peer in peers.items():
            samples[name].append(1e3 * device.seconds(peer, calls[name]) / calls[name])
    return {name: spread(values) for name, values in samples.items()}


def in_seconds(row: Mapping[str, Any]) -> str:
    """Return the spread in ``row`` in seconds: the middle, and in brackets the 20th and 80th percentile."""
    low, middle, high = (row[key] / 1e3 for key in ("ms_p20", "ms_p50", "ms_p80"))
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def spread(values: list[float]) -> Times:
    """Return the 20th, 50th and 80th percentile, interpolated."""
    if len(values) == 1:
        return {"ms_p20": values[0], "ms_p50": values[0], "ms_p80": values[0]}
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return {"ms_p20": fifths[0], "ms_p50": statistics.median(values), "ms_p80": fifths[3]}
