"""What the profiler sees of a recorded first-order iteration of the CNN, beside what ``bench model`` counts.

The model gets the ceilings that this machine was measured to have, not its vendor's figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.cnn_peers import CNN
from bench.costs import OPERATIONS, Launch
from bench.gpu.cases import REHEARSED_SIZES
from bench.gpu.graphs import playing, recorded
from bench.gpu.stage import Check, Row
from bench.model import STOCK, Card, count, launch_seconds
from bench.peers import Peer

ORDER, PEER = 1, "triton store"


def run(check: Check) -> None:
    """Profile a replay; a row a kernel, what takes longest first, then one of all."""
    size = REHEARSED_SIZES["cnn"] if check.rehearse else CNN.size
    launches, _ = count(CNN, PEER, ORDER, size)
    ceilings = measured(check.earlier["versions"])
    with playing(check.rehearse):
        peer = Peer("cpu" if check.rehearse else "triton")
        iteration = CNN.iteration(peer, size, device=check.place)
        replay = recorded(iteration, ORDER, check.place)
        kernels = seen(replay, check.place)
    rows = compared(kernels, launches, ceilings)
    for row in rows:
        check.row(**row)
    totals = {name: sum(row[name] for row in rows) for name in ("launches", "counted", "ms", "model_ms")}
    check.row(kernel="all", **totals)


def measured(versions: Iterable[Row]) -> Card:
    """Return the card that the stage ``versions`` measured."""
    found: Row = {}
    for row in versions:
        found |= row
    return Card(bandwidth=1e9 * found["copy_gbs"], rate=1e9 * found["sgemm_gflops"])


def seen(replay: Any, place: torch.device) -> list[tuple[str, float]]:
    """Return name and microseconds of every kernel of ``replay()``; on the CPU, of every operator."""
    on_gpu = place.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        replay()
        if on_gpu:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [(e.name, e.time_range.elapsed_us()) for e in found.events() if e.device_type == wanted]


def compared(kernels: Iterable[tuple[str, float]], launches: Iterable[Launch], card: Card) -> list[Row]:
    """Return a row a Triton kernel, seen and counted, and one of everything else."""
    rows: dict[str, Row] = {}

    def row(name: str) -> Row:
        empty = {"kernel": name, "launches": 0, "counted": 0, "ms": 0.0, "model_ms": 0.0}
        return rows.setdefault(name, empty)

    for name, microseconds in kernels:
        # A copy or a filling of memory is an event of its own kind, and a launch of a stock operator.
        one = row(name if name in OPERATIONS else STOCK)
        one["launches"] += 1
        one["ms"] += microseconds / 1e3
    for launch in launches:
        one = row(launch.name if launch.triton else STOCK)
        one["counted"] += 1
        one["model_ms"] += 1e3 * launch_seconds(launch, card)
    return sorted(rows.values(), key=lambda one: (-one["ms"], -one["model_ms"]))
