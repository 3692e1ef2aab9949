"""Runs side by side: options that differ, what they reached, curves and cells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from dartsfast.drawing.curves import MEASURES, curves_of
from dartsfast.drawing.inline import Line, inline_curves
from dartsfast.errors import InputError
from dartsfast.files import write_whole
from dartsfast.runs.page import cells, legend, page, section, state_words, table
from dartsfast.runs.progress import clock_time
from dartsfast.runs.record import Record, read_run

_COLORS = 6  # that the page's style sheet has for runs


def read_runs(folders: Sequence[str | Path]) -> list[Record]:
    """Read what two or more runs have left.

    Raises:
        InputError: a folder that holds no run, or only one run.
    """
    runs = [read_run(Path(os.path.expanduser(folder))) for folder in folders]
    if len({run.folder.resolve() for run in runs}) < 2:
        raise InputError("a comparison needs the folders of two runs or more, each another one")
    return runs


def names(runs: Sequence[Record]) -> list[str]:
    """Return a short name for every run: of its folder, from where on it differs from the others'."""
    paths = [run.folder.absolute() for run in runs]
    shared = len(Path(os.path.commonpath([path.parent for path in paths])).parts)
    return [str(Path(*path.parts[shared:])) for path in paths]


def compared(runs: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Return what of the runs is not the same, options first, with a value of each run."""
    lines: list[tuple[str, list[Any]]] = [("command", [" ".join(run.command or "?") for run in runs])]
    for name in dict.fromkeys(name for run in runs for name in run.options):
        lines.append((name, [run.options.get(name, "-") for run in runs]))
    differing = [(name, [str(v) for v in values]) for name, values in lines if len(set(map(str, values))) > 1]
    reached = [
        ("state", [state_words(run) for run in runs]),
        ("measure", [run.reached or "-" for run in runs]),
        ("time", [clock_time(run.seconds) for run in runs]),
        ("cell", [run.digits or "-" for run in runs]),
    ]
    last = dict.fromkeys(name for run in runs if run.rows for name in run.rows[-1] if name != "epoch")
    for name in last:
        values = [run.rows[-1].get(name) if run.rows else None for run in runs]
        reached.append((f"last {name}", ["-" if value is None else f"{value:.6g}" for value in values]))
    return differing + reached


def write_comparison(runs: Sequence[Record], path: str | Path) -> Path:
    """Write one page with what :func:`compared` returns, the curves in one picture and the cells."""
    titles = names(runs)
    styles = [f"run{k % _COLORS}" for k in range(len(runs))]
    head = "<header><h1>runs side by side</h1>" + "".join(
        f'<p><b class="key"><i class="{style}"></i>{escape(title)}</b> '
        f'<span class="soft">{escape(str(run.folder.absolute()))}: {escape(state_words(run))}</span></p>'
        for run, title, style in zip(runs, titles, styles, strict=True)
    ) + "</header>"  # fmt: skip
    rows = [(name, *values) for name, values in compared(runs)]
    drawn = "".join(
        cells(run, name=f"cells-{k}", title=title)
        for k, (run, title) in enumerate(zip(runs, titles, strict=True))
    )
    parts = (
        head,
        section("Options that differ, and what was reached", table(("", *titles), rows), name="differences"),
        section("Curves", _curves(runs, titles, styles), name="curves"),
        f'<div class="panels">{drawn}</div>',
    )
    target = Path(os.path.expanduser(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, page("runs side by side", parts))
    return target


def _curves(runs: Sequence[Record], titles: Sequence[str], styles: Sequence[str]) -> str:
    panels: dict[str, list[Line]] = {}
    for run, title, style in zip(runs, titles, styles, strict=True):
        for measure, lines in curves_of(run.rows).items():
            for split, points in lines.items():
                dashed = " dashed" if split == "train" else ""
                panels.setdefault(measure, []).append(Line(f"{title}, {split}", style + dashed, points))
    if not panels:
        return ""
    drawn = "".join(inline_curves(MEASURES.get(measure, measure), lines) for measure, lines in panels.items())
    note = '<p class="soft">Dashed: while training.</p>'
    return f'{legend(zip(titles, styles, strict=True))}<div class="panels">{drawn}</div>{note}'
