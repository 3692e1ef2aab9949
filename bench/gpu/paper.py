"""The paper's searches: time and memory of an iteration, ours and the reference's, eager and in a graph.

Everything of a network is in memory at once, and is timed in turn. What a graph holds is measured while it is
recorded, which allocates what an iteration does. Beside the peak of our CNN stands what its programs planned.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.device import open_device
from bench.gpu.cases import REHEARSED_SIZES
from bench.gpu.graphs import capturable, playing, recorded
from bench.gpu.stage import Check
from bench.peers import Iteration, Peer, Workload
from bench.timing import interleaved
from bench.workloads import WORKLOADS
from dartsfast.backends import pretending
from dartsfast.backends.table import STORING
from dartsfast.errors import InputError
from dartsfast.fused import passes

REPEATS = 3
CANDIDATES = 4  # of cuDNN's algorithms for a convolution, of which the original takes the fastest


@dataclass(frozen=True)
class Way:
    """A peer, whether it is timed as it is (``eager``) and as a graph, and under bfloat16 autocast."""

    peer: Peer
    eager: bool = True
    autocast: bool = False


def ways(network: str, ours: str) -> dict[str, Way]:
    """Return how iterations of ``network`` are computed, by name; ``ours`` is our backend."""
    found = {
        "ours": Way(Peer(ours)),
        "ours recompute": Way(Peer(ours, memory="recompute"), eager=False),
        "reference": Way(Peer("reference")),
    }
    if network == "cnn":
        found["ours cell"] = Way(Peer(ours, memory="cell"))
        half = Peer(ours, storage=torch.bfloat16 if ours in STORING else None)
        found["ours bf16 storage"] = Way(half, eager=False)
        found["reference channels_last bf16 autocast"] = Way(
            Peer("reference", channels_last=True), autocast=True
        )
    return found


def run(check: Check, order: str) -> None:
    """Measure iterations of ``order`` ("1" or "2") of both networks; a row a way."""
    device = open_device(check.place.type)
    as_original = torch.backends.cudnn.flags(
        enabled=True, benchmark=True, benchmark_limit=CANDIDATES, allow_tf32=False
    )
    with as_original, playing(check.rehearse):
        for network, workload in WORKLOADS.items():
            calls, memory = _prepared(check, network, workload, int(order), device)
            planned = _planned(check, workload, int(order)) if network == "cnn" else {}
            times = interleaved(calls, 1 if check.rehearse else REPEATS, device)
            base = times["reference"]["ms_p50"]
            for name, found in times.items():
                shown = {"ms": found["ms_p50"], "ms_p20": found["ms_p20"], "ms_p80": found["ms_p80"]}
                shown |= {"times_faster": base / found["ms_p50"], "peak_mb": memory[name]}
                if name in planned:
                    shown["planned_mb"] = planned[name]
                check.row(network=network, order=int(order), way=name, **shown)
            del calls
            _forget()


def _prepared(
    check: Check, network: str, workload: Workload, order: int, device: Any
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Return what runs an iteration every way, warm, and the peak of memory of each, MB."""
    size = REHEARSED_SIZES[network] if check.rehearse else workload.size
    calls: dict[str, Callable[[], Any]] = {}
    memory: dict[str, float] = {}
    for name, way in ways(network, check.backend).items():
        iteration = workload.iteration(way.peer, size, device=check.place)
        capturable(iteration)
        eager = partial(_step, iteration, order, way.autocast)
        eager()  # compiles, and makes the optimisers' state
        if way.eager:
            memory[name] = device.peak_megabytes(eager)
            calls[name] = eager
        graph = f"{name}, graph"
        try:
            memory[graph] = device.peak_megabytes(
                partial(_record, calls, graph, iteration, order, way, check.place)
            )
        except InputError as error:
            check.row(network=network, order=order, way=graph, failed=str(error))
            _forget()
    return calls, memory


def _planned(check: Check, workload: Workload, order: int) -> dict[str, float]:
    """Return the peak of memory that programs of our ways plan, MB."""
    size: Any = REHEARSED_SIZES["cnn"] if check.rehearse else workload.size
    found: dict[str, float] = {}
    for name, way in ways("cnn", check.backend).items():
        if way.peer.backend == "reference":
            continue
        with pretending(way.peer.backend), torch.device("meta"):
            model = workload.iteration(way.peer, size, device=torch.device("meta")).model
        images = size.batch, 3, size.image, size.image
        found[name] = max(one.peak + one.beside for one in passes.iteration(model, images, order)) / 1e6
    return found


def _step(iteration: Iteration, order: int, autocast: bool) -> None:
    with _rounding(autocast, iteration):
        iteration.run_in_place(order)


def _record(
    calls: dict[str, Callable[[], Any]],
    name: str,
    iteration: Iteration,
    order: int,
    way: Way,
    place: torch.device,
) -> None:
    with _rounding(way.autocast, iteration):
        calls[name] = recorded(iteration, order, place, warm_up=1)  # it has run before


def _rounding(autocast: bool, iteration: Iteration) -> Any:
    if not autocast:
        return nullcontext()
    place = next(iter(iteration.model.parameters())).device
    # A cache of weights would be of the warm-up's memory.
    return torch.autocast(place.type, torch.bfloat16, cache_enabled=False)


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
