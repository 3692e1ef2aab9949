"""Suite ``ops``: every operator against stock functions, and against what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bench.device import Device, open_device
from bench.gate import disagreement
from bench.machine import ceilings
from bench.op_cases import OURS, STOCK, STOCK_LAST, WITH_SUMS, Case, Peers, all_cases
from bench.options import Options
from bench.timing import interleaved
from dartsfast.backends import resolve_backend

SAMPLE_SECONDS = 0.01
# Of the largest value of an output. The truth is float64's, and float32 rounds over sums of a whole batch.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 5e-5}


def run(options: Options) -> dict[str, Any]:
    """Gate and time every case; return conditions and rows, one a peer of a pass.

    Raises:
        InputError: the device or its backend is not available.
    """
    device = open_device(options.device)
    resolve_backend(device.backend)
    batch = options.batch or (2 if options.quick else 16)
    repeats = options.repeats or (2 if options.quick else 30)
    limits = ceilings(repeats, device, quick=options.quick)
    rows = []
    for case in all_cases(batch, quick=options.quick):
        print(f"ops: {case.op}, {case.label}", flush=True)
        reason = refusal(case, device)
        if reason:
            print(f"ops: refused: {reason}", flush=True)
            rows.append({"op": case.op, "case": case.label, "refused": reason})
        else:
            rows += _measured(case, repeats, limits, device, options)
    conditions = {"batch": batch, "repeats": repeats, "dtype": "float32", **limits}
    return {"conditions": conditions, "rows": rows}


def refusal(case: Case, device: Device) -> str | None:
    """Return why ``case`` must not be timed, or None: every peer against the stock one in float64."""
    truth = {name: _view(peers, STOCK) for name, peers in case.build(torch.float64, device.place).items()}
    for dtype, tolerance in TOLERANCES.items():
        for name, peers in case.build(dtype, device.place).items():
            for peer in peers:
                wrong = disagreement(_view(peers, peer), truth[name], tolerance)
                if wrong:
                    return f"{name} of {peer} in {str(dtype).removeprefix('torch.')}: {wrong}"
    return None


def _view(peers: Peers, name: str) -> list[torch.Tensor]:
    timed = peers[name]
    return [tensor.detach() for tensor in timed.view(timed.call())]


def _measured(
    case: Case, repeats: int, limits: Mapping[str, float | None], device: Device, options: Options
) -> list[dict[str, Any]]:
    rows = []
    for name, peers in case.build(torch.float32, device.place).items():
        calls = {peer: timed.call for peer, timed in peers.items()}
        times = interleaved(calls, repeats, device, sample_seconds=0.0 if options.quick else SAMPLE_SECONDS)
        # Where batch norm's channel sums are a call of their own, they count: the stock backward has them.
        whole = times[WITH_SUMS if WITH_SUMS in times else OURS]["ms_p50"]
        for peer, found in times.items():
            row: dict[str, Any] = {"op": case.op, "case": case.label, "pass": name, "peer": peer, **found}
            if peer == OURS:
                row |= _rates(case, name, found["ms_p50"], limits)
            if peer in (STOCK, STOCK_LAST):
                row["speedup"] = found["ms_p50"] / whole
            rows.append(row)
    return rows


def _rates(case: Case, name: str, ms: float, limits: Mapping[str, float | None]) -> dict[str, float]:
    """Return GFLOP/s and GB/s, and their shares of the ceilings, where they mean something."""
    rates: dict[str, float] = {}
    if name in case.flops:
        rates["gflops"] = case.flops[name] / ms / 1e6
        for share, limit in (("share_sgemm", "sgemm_gflops"), ("share_sgemm_avx2", "sgemm_avx2_gflops")):
            if ceiling := limits[limit]:
                rates[share] = rates["gflops"] / ceiling
    if name in case.bytes:
        rates["gbs"] = case.bytes[name] / ms / 1e6
        rates["share_copy"] = rates["gbs"] / (limits["copy_gbs"] or float("nan"))
    return rates


def table(result: dict[str, Any]) -> str:
    """Return the rows as a markdown table, a line a pass."""
    lines = [
        "| operator | pass | ms (p20-p80) | GFLOP/s | of sgemm | of AVX2 sgemm | GB/s | of copy "
        "| with channel sums, ms | stock, ms | times | stock channels_last, ms | times |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        key = (row["op"], row["case"], row.get("pass", ""))
        groups.setdefault(key, {})[row.get("peer", OURS)] = row
    for (op, case, name), peers in groups.items():
        ours = peers[OURS]
        if "refused" in ours:
            lines.append(f"| {op} {case} | not timed: {ours['refused']} |" + " |" * 11)
            continue
        cells = [f"{op} {case}", name, f"{ours['ms_p50']:.3f} ({ours['ms_p20']:.3f}-{ours['ms_p80']:.3f})"]
        cells += [_number(ours, "gflops"), _percent(ours, "share_sgemm"), _percent(ours, "share_sgemm_avx2")]
        cells += [_number(ours, "gbs"), _percent(ours, "share_copy")]
        cells.append(_number(peers.get(WITH_SUMS, {}), "ms_p50", 3))
        for stock in (STOCK, STOCK_LAST):
            cells += [_number(peers.get(stock, {}), "ms_p50", 3), _number(peers.get(stock, {}), "speedup")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured and against which ceilings."""
    given = result["conditions"]
    avx2 = given["sgemm_avx2_gflops"]
    return (
        f"batch {given['batch']}, float32, medians of {given['repeats']} interleaved samples; "
        f"ceilings: sgemm {given['sgemm_gflops']:.1f} GFLOP/s, sgemm on AVX2 only "
        f"{'not measured' if avx2 is None else f'{avx2:.1f} GFLOP/s'}, "
        f"copy {given['copy_gbs']:.1f} GB/s (read + written)"
    )


def _number(row: Mapping[str, Any], key: str, digits: int = 1) -> str:
    return f"{row[key]:.{digits}f}" if key in row else ""


def _percent(row: Mapping[str, Any], key: str) -> str:
    return f"{100 * row[key]:.0f} %" if key in row else ""
