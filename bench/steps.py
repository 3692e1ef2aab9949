"""What the suites ``*_step`` share: whole search iterations, first and second order: time and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.device import Device, open_device
from bench.gate import disagreement
from bench.memory import peak_megabytes
from bench.options import Options
from bench.peers import REFERENCE, Peer, Workload
from bench.timing import in_seconds, interleaved
from dartsfast.backends import resolve_backend

# Of the largest gradient. In float32 rounding can flip a relu, stock or not, and with it a pixel's gradient.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-2}
# Every layer rounds what it stores: rounding the reference's images to bfloat16 moves these gradients by 0.2.
STORED_TOLERANCE = 0.5
QUICK_PEERS = ("cpu store", "triton store", REFERENCE)

Column = tuple[str, Callable[[Mapping[str, Any]], str]]  # title, and row to cell


class Floor(NamedTuple):
    """What no peer can do without.

    Attributes:
        calls: size, order and device of an iteration to what is timed in turn with its peers, by name.
        seconds: size, order, device and the milliseconds of each to what an iteration takes at least.
    """

    calls: Callable[[Any, int, Device], Mapping[str, Callable[[], Any]]]
    seconds: Callable[[Any, int, Device, Mapping[str, float]], float]


def run(
    workload: Workload, options: Options, floor: Floor | None = None, orders: Sequence[int] = (1, 2)
) -> dict[str, Any]:
    """Gate and measure the peers of ``workload``, compiled ones if asked for; return conditions and rows.

    With a ``floor``, what no peer can do without is in each row's ``floor_s`` and ``share_floor``, and what
    was timed of it in the conditions' ``floor_ms``, by order and name.

    Raises:
        InputError: a device or backend that is not available.
    """
    size = workload.quick if options.quick else workload.size
    size = dataclasses.replace(size, batch=options.batch or size.batch)
    repeats = options.repeats or (1 if options.quick else 3)
    device = open_device(options.device)
    chosen = _chosen(workload, options, device)
    for peer in chosen.values():
        resolve_backend(peer.backend)
    refused = {name: reason for name, peer in chosen.items() if (reason := refusal(workload, peer, device))}
    for name, reason in refused.items():
        _say(workload, f"{name} refused: {reason}")
    rows: list[dict[str, Any]] = [{"peer": name, "refused": reason} for name, reason in refused.items()]
    left = {name: peer for name, peer in chosen.items() if name not in refused}
    # Memory first: this process is still small, so that both fit the machine.
    memory = {
        (name, order): _memory(workload, name, order, size, options.device)
        for order in orders
        for name in left
    }
    below: dict[str, dict[str, float]] = {}
    for order in orders:
        # What did not compile there will not compile here.
        lost = {n for n, peer in left.items() if peer.compiled and "memory_error" in memory[n, order]}
        kept = {n: peer for n, peer in left.items() if n not in lost}
        found = _timed(workload, kept, floor, order, size, repeats, device)
        under = {}
        if floor:
            calls = below[str(order)] = {n: found.pop(n)["ms_p50"] for n in set(found) - set(kept)}
            under = {"floor_s": floor.seconds(size, order, device, calls)}
        found |= {n: {"failed": memory[n, order]["memory_error"]} for n in lost}
        rows += [
            {"peer": n, "order": order, "batch": size.batch, **found[n], **memory[n, order], **under}
            for n in left
        ]
    _add_ratios(rows)
    given = {**dataclasses.asdict(size), "repeats": repeats, "dtype": "float32"}
    return {"conditions": {**given, "floor_ms": below} if floor else given, "rows": rows}


def _chosen(workload: Workload, options: Options, device: Device) -> dict[str, Peer]:
    peers = {n: p for n, p in workload.peers.items() if p.backend in (device.backend, REFERENCE)}
    wanted = QUICK_PEERS if options.quick else tuple(peers)
    return {n: p for n, p in peers.items() if (options.compile if p.compiled else n in wanted)}


def refusal(workload: Workload, peer: Peer, device: Device) -> str | None:
    """Return why ``peer`` must not be timed, or None: a small network's losses and all their gradients.

    The truth is the reference in float64. A compiled peer runs uncompiled here: compiling for two dtypes
    would take longer than the measurement, and what is ours to get right is not in it.
    """
    eager = dataclasses.replace(peer, compiled=False)
    reference = workload.peers[REFERENCE]
    truth = workload.iteration(reference, workload.gate, torch.float64, device.place).loss_and_gradients()
    tolerances = TOLERANCES if peer.storage is None else {torch.float32: STORED_TOLERANCE}
    for dtype, tolerance in tolerances.items():
        found = workload.iteration(eager, workload.gate, dtype, device.place).loss_and_gradients()
        wrong = disagreement(found, truth, tolerance)
        if wrong:
            return f"loss, alpha and weight gradients in {str(dtype).removeprefix('torch.')}: {wrong}"
    return None


def _memory(workload: Workload, name: str, order: int, size: Any, device: str) -> dict[str, Any]:
    _say(workload, f"memory of {name}, order {order}")
    try:
        return {"peak_mb": peak_megabytes(workload.network, name, order, size, device)}
    except RuntimeError as error:
        return {"memory_error": str(error)}


def _timed(
    workload: Workload,
    peers: Mapping[str, Peer],
    floor: Floor | None,
    order: int,
    size: Any,
    repeats: int,
    device: Device,
) -> dict[str, dict[str, Any]]:
    """Time an iteration of every peer, and the ``floor``, in turn; a compiled one that fails says why."""
    _say(workload, f"time of order {order}")
    failed: dict[str, dict[str, Any]] = {}
    calls = dict(floor.calls(size, order, device)) if floor else {}
    for name, peer in peers.items():
        calls[name] = partial(workload.iteration(peer, size, device=device.place).run, order)
        if peer.compiled:
            try:
                calls[name]()
            except RuntimeError as error:
                del calls[name]
                failed[name] = {"failed": str(error).strip().splitlines()[0]}
    return {**interleaved(calls, repeats, device), **failed}


def _say(workload: Workload, text: str) -> None:
    print(f"{workload.network}_step: {text}", flush=True)


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add how many times faster and smaller than the reference a row is, and the share of its floor."""
    bases = {row["order"]: row for row in rows if row["peer"] == REFERENCE and "order" in row}
    for row in rows:
        base = bases.get(row.get("order", 0), {})
        for ratio, key in (("speedup", "ms_p50"), ("memory_ratio", "peak_mb")):
            if key in row and key in base:
                row[ratio] = base[key] / row[key]
        if "floor_s" in row and "ms_p50" in row:
            row["share_floor"] = 1e3 * row["floor_s"] / row["ms_p50"]


def table(result: dict[str, Any], extra: Sequence[Column] = ()) -> str:
    """Return the rows as a markdown table, with ``extra`` columns after those of the time."""
    columns: list[Column] = [
        ("order", lambda row: str(row["order"])),
        ("peer", lambda row: row["peer"]),
        ("iteration, s (p20-p80)", _time),
        ("times faster", partial(_ratio, key="speedup")),
        *extra,
        (
            "peak memory, MB",
            lambda row: f"{row['peak_mb']:,.0f}" if "peak_mb" in row else row["memory_error"],
        ),
        ("times smaller", partial(_ratio, key="memory_ratio")),
    ]
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|---" * len(columns) + "|"]
    for row in result["rows"]:
        if "refused" in row:
            cells = ["", row["peer"], f"not timed: {row['refused']}", *[""] * (len(columns) - 3)]
        else:
            cells = [cell(row) for _, cell in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _time(row: Mapping[str, Any]) -> str:
    if "ms_p50" not in row:
        return row["failed"]
    return in_seconds(row)


def floor_columns(title: str) -> list[Column]:
    """Return the columns of the floor, under ``title``, and of the share of it that is reached."""
    return [(title, _floor), ("share reached", _share)]


def _floor(row: Mapping[str, Any]) -> str:
    return f"{row['floor_s']:.3g}" if "floor_s" in row else ""


def _share(row: Mapping[str, Any]) -> str:
    return f"{100 * row['share_floor']:.0f} %" if "share_floor" in row else ""


def _ratio(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.1f}" if key in row else ""


def conditions(result: dict[str, Any], network: str) -> str:
    """Say in a sentence what was measured on ``network``."""
    given = result["conditions"]
    memory = "allocated" if "device" in result["header"] else "resident"
    return (
        f"{network}, batch {given['batch']}, float32: an alpha step and a weight step; medians of "
        f"{given['repeats']} interleaved iterations; peak {memory} memory above model, "
        "data and optimisers"
    )
