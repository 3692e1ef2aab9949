"""Suite ``cnn_step``: a whole iteration of the CNN search, first and second order: time and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from bench.gate import disagreement
from bench.memory import peak_megabytes
from bench.options import Options
from bench.peers import PEERS, REFERENCE, Iteration, Peer, Size
from bench.timing import interleaved
from dartsfast.backends import resolve_backend

GATE = Size(batch=2, C=4, layers=3, image=16)
QUICK = Size(batch=2, C=4, layers=3, image=8)
# Of the largest gradient. In float32 rounding can flip a relu, stock or not, and with it a pixel's gradient.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-2}
QUICK_PEERS = ("cpu store", REFERENCE)


def run(options: Options) -> dict[str, Any]:
    """Gate and measure all peers, compiled ones only if asked for; return conditions and rows.

    Raises:
        InputError: a backend that is not available.
    """
    size = QUICK if options.quick else Size()
    size = dataclasses.replace(size, batch=options.batch or size.batch)
    repeats = options.repeats or (1 if options.quick else 3)
    chosen = _chosen(options)
    for peer in chosen.values():
        resolve_backend(peer.backend)
    refused = {name: reason for name, peer in chosen.items() if (reason := refusal(peer))}
    for name, reason in refused.items():
        print(f"cnn_step: {name} refused: {reason}", flush=True)
    rows: list[dict[str, Any]] = [{"peer": name, "refused": reason} for name, reason in refused.items()]
    left = {name: peer for name, peer in chosen.items() if name not in refused}
    # Memory first: this process is still small, so that both fit the machine.
    memory = {(name, order): _memory(name, order, size) for order in (1, 2) for name in left}
    for order in (1, 2):
        # What did not compile there will not compile here.
        lost = {n for n, peer in left.items() if peer.compiled and "memory_error" in memory[n, order]}
        found = _timed({n: peer for n, peer in left.items() if n not in lost}, order, size, repeats)
        found |= {n: {"failed": memory[n, order]["memory_error"]} for n in lost}
        rows += [
            {"peer": n, "order": order, "batch": size.batch, **found[n], **memory[n, order]} for n in left
        ]
    _add_ratios(rows)
    return {"conditions": {**dataclasses.asdict(size), "repeats": repeats, "dtype": "float32"}, "rows": rows}


def _chosen(options: Options) -> dict[str, Peer]:
    wanted = QUICK_PEERS if options.quick else tuple(PEERS)
    return {n: p for n, p in PEERS.items() if (options.compile if p.compiled else n in wanted)}


def refusal(peer: Peer) -> str | None:
    """Return why ``peer`` must not be timed, or None: a small network's loss and all its gradients.

    The truth is the reference in float64. A compiled peer runs uncompiled here: compiling for two dtypes
    would take longer than the measurement, and what is ours to get right is not in it.
    """
    eager = Peer(peer.backend, peer.memory, peer.channels_last)
    truth = Iteration(PEERS[REFERENCE], GATE, torch.float64).loss_and_gradients()
    for dtype, tolerance in TOLERANCES.items():
        found = Iteration(eager, GATE, dtype).loss_and_gradients()
        wrong = disagreement(found, truth, tolerance)
        if wrong:
            return f"loss, alpha and weight gradients in {str(dtype).removeprefix('torch.')}: {wrong}"
    return None


def _memory(name: str, order: int, size: Size) -> dict[str, Any]:
    print(f"cnn_step: memory of {name}, order {order}", flush=True)
    try:
        return {"peak_mb": peak_megabytes(name, order, size)}
    except RuntimeError as error:
        return {"memory_error": str(error)}


def _timed(peers: Mapping[str, Peer], order: int, size: Size, repeats: int) -> dict[str, dict[str, Any]]:
    """Time an iteration of every peer in turn; a compiled one that fails says why."""
    print(f"cnn_step: time of order {order}", flush=True)
    failed: dict[str, dict[str, Any]] = {}
    calls = {}
    for name, peer in peers.items():
        calls[name] = partial(Iteration(peer, size).run, order)
        if peer.compiled:
            try:
                calls[name]()
            except RuntimeError as error:
                del calls[name]
                failed[name] = {"failed": str(error).strip().splitlines()[0]}
    return {**interleaved(calls, repeats), **failed}


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add how many times faster and smaller than the reference a row is."""
    bases = {row["order"]: row for row in rows if row["peer"] == REFERENCE and "order" in row}
    for row in rows:
        base = bases.get(row.get("order", 0), {})
        for ratio, key in (("speedup", "ms_p50"), ("memory_ratio", "peak_mb")):
            if key in row and key in base:
                row[ratio] = base[key] / row[key]


def table(result: dict[str, Any]) -> str:
    """Return the rows as a markdown table."""
    lines = [
        "| order | peer | iteration, s (p20-p80) | times faster | peak memory, MB | times smaller |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "refused" in row:
            lines.append(f"| | {row['peer']} | not timed: {row['refused']} | | | |")
            continue
        time = row.get("failed", "")
        if "ms_p50" in row:
            low, middle, high = (row[key] / 1e3 for key in ("ms_p20", "ms_p50", "ms_p80"))
            time = f"{middle:.3g} ({low:.3g}-{high:.3g})"
        memory = f"{row['peak_mb']:,.0f}" if "peak_mb" in row else row["memory_error"]
        cells = [str(row["order"]), row["peer"], time, _ratio(row, "speedup"), memory]
        lines.append("| " + " | ".join([*cells, _ratio(row, "memory_ratio")]) + " |")
    return "\n".join(lines)


def _ratio(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.1f}" if key in row else ""


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured."""
    given = result["conditions"]
    return (
        f"Network(C={given['C']}, {given['classes']} classes, {given['layers']} layers), "
        f"{given['image']}x{given['image']} images, batch {given['batch']}, float32: an alpha step and a "
        f"weight step; medians of {given['repeats']} interleaved iterations; peak resident memory above "
        "model, data and optimisers"
    )
