"""The alphas of a search over its epochs, as a part of a page whose script moves them with a slider."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from dartsfast.drawing.alphas import kept_places, real_ops
from dartsfast.runs.record import Record


def alphas_over_time(run: Record) -> str:
    """Return heat maps of the alphas and a slider that goes through the epochs; nothing of a run without."""
    noted = [note for note in run.notes.values() if note["alphas"]]
    if not noted:
        return ""
    percents = [
        {name: _softmax(table["weights"]) for name, table in note["alphas"].items()} for note in noted
    ]
    frames = [
        {"epoch": note["epoch"], "tables": [_frame(note["alphas"][name], percent[name]) for name in percent]}
        for note, percent in zip(noted, percents, strict=True)
    ]
    real = [
        percent[name][:, real_ops(note["alphas"][name]["operations"])]
        for note, percent in zip(noted, percents, strict=True)
        for name in percent
    ]
    low, high = min(part.min() for part in real), max(part.max() for part in real)
    shades = {"low": low, "span": max(high - low, 1.0)}  # percent
    last = noted[-1]["alphas"]
    maps = "".join(
        f"<div><h3>{escape(name)}</h3>{_heat(last[name], frame, shades)}</div>"
        for name, frame in zip(last, frames[-1]["tables"], strict=True)
    )
    most = len(frames) - 1
    slider = (
        '<div class="slider" hidden><button id="play" type="button">play</button>'
        f'<input id="epoch" type="range" min="0" max="{most}" value="{most}" step="1" aria-label="epoch">'
        f'<output id="shown" for="epoch">epoch {frames[-1]["epoch"]}</output></div>'
    )
    words = (
        f"softmax(alpha) in percent, every operation on every edge; shades from {low:.1f} to {high:.1f}. "
        "Underlined: the strongest of its edge; framed: in the cell."
    )
    # "<" would end the script.
    data = json.dumps({**shades, "frames": frames}, separators=(",", ":")).replace("<", "\\u003c")
    script = f'<script type="application/json" id="frames">{data}</script>'
    missing = len(run.rows) - len(noted)
    lacking = f" Of {missing} epochs none were kept." if missing > 0 else ""
    return f'{slider}<div class="panels">{maps}</div><p class="soft">{words}{lacking}</p>{script}'


def _softmax(weights: Sequence[Sequence[float]]) -> np.ndarray:
    raw = np.asarray(weights, dtype=np.float64)  # [edges, operations]
    grown = np.exp(raw - raw.max(axis=1, keepdims=True))
    return 100 * grown / grown.sum(axis=1, keepdims=True)


def _frame(table: Mapping[str, Any], percent: np.ndarray) -> dict[str, list]:
    """Return what a heat map of an epoch shows, row after row: percent, and places of what is marked."""
    columns, real = percent.shape[1], np.asarray(real_ops(table["operations"]))
    best = real[percent[:, real].argmax(axis=1)] + columns * np.arange(len(percent))
    kept = kept_places(table["operations"], table["edges"], table["kept"])
    return {
        "percent": percent.round(2).ravel().tolist(),
        "best": best.tolist(),
        "kept": sorted(row * columns + column for row, column in kept),
    }


def _heat(table: Mapping[str, Any], frame: Mapping[str, list], shades: Mapping[str, float]) -> str:
    operations, lines, node = table["operations"], [], ""
    for row, edge in enumerate(table["edges"]):
        source, _, target = edge.partition("→")
        line = "".join(
            _cell(frame, shades, row * len(operations) + column, operation == "none")
            for column, operation in enumerate(operations)
        )
        first = "node" if node not in ("", target) else ""
        node = target
        lines.append(f'<tr class="{first}"><th>{_state(source)}→{escape(target)}</th>{line}</tr>')
    heads = "".join(f"<th><span>{escape(operation)}</span></th>" for operation in operations)
    head, body = f"<thead><tr><th></th>{heads}</tr></thead>", f"<tbody>{''.join(lines)}</tbody>"
    return f'<table class="heat">{head}{body}</table>'


def _cell(frame: Mapping[str, list], shades: Mapping[str, float], at: int, none: bool) -> str:
    marks = {"none": none, "best": at in frame["best"], "kept": at in frame["kept"]}
    style = " ".join(mark for mark, given in marks.items() if given)
    percent = frame["percent"][at]
    shade = min(max((percent - shades["low"]) / shades["span"], 0), 1)  # as the page's script has it
    return f'<td class="{style}" style="--w:{shade:.3f}">{percent:.1f}</td>'


def _state(name: str) -> str:
    """Return the name of a state such as ``c_{k-1}``, its index set lower."""
    name, brace, index = name.partition("_{")
    return f"{escape(name)}<sub>{escape(index.removesuffix('}'))}</sub>" if brace else escape(name)
