"""``report.html``: a run as one page that needs nothing else, neither a network nor a file beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dartsfast.drawing.curves import MEASURES, SPLITS, curves_of
from dartsfast.drawing.inline import Line, inline_cells, inline_curves
from dartsfast.files import write_whole
from dartsfast.runs.alphas_over_time import alphas_over_time
from dartsfast.runs.config_file import repeat_command, resume_command
from dartsfast.runs.progress import clock_time
from dartsfast.runs.record import Record, cell_digits, read_run

REPORT = "report.html"
CLOCK = ("seconds", "loader_share")  # columns of the log that differ from one machine and hour to the next


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from what lies in the folder of a run, whole or not at all; return its path.

    Raises:
        InputError: there is no run in it.
    """
    run = read_run(folder)
    title = f"{' '.join(run.command or ('run',))}: {folder.absolute().name}"
    parts = (
        _head(run), _figures(run), _curves(run), _candidates(run), cells(run),
        section("Alphas over time", alphas_over_time(run), name="alphas"),
        _log(run), _options(run), _times(run), _environment(run),
    )  # fmt: skip
    write_whole(folder / REPORT, page(title, parts))
    return folder / REPORT


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page of ``parts`` of HTML."""
    template = Template((files("dartsfast.runs") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(part for part in parts if part))


def section(title: str, content: str, *, name: str) -> str:
    """Return a part of a page, of HTML ``content``; nothing where that is nothing."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{content}\n</section>' if content else ""


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, style: str = "", clock: Sequence[str] = ()
) -> str:
    """Return a table that scrolls where it is wide, the first column of which names the rows.

    Cells of the columns ``clock`` are marked as such: they are not the same in a run done again.
    """
    styles = [' class="clock"' if column in clock else "" for column in columns]
    heads = zip(columns, styles, strict=True)
    head = "".join(f"<th{style}>{escape(column)}</th>" for column, style in heads)
    lines = []
    for first, *others in rows:
        cells_ = zip(others, styles[1:], strict=True)
        line = "".join(f"<td{style}>{escape(str(cell))}</td>" for cell, style in cells_)
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{line}</tr>')
    return (
        f'<div class="wide"><table class="{style}"><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def state_words(run: Record) -> str:
    """Say how far a run is."""
    of = f"{run.done} of {run.total} {run.unit}"
    if run.problems:
        return "damaged"
    if run.state == "running":
        return f"going on: {of} done"
    if run.state == "finished":
        return f"finished: {of}"
    if not run.total:
        return f"{run.done} epochs done, of how many an earlier version did not say"
    silent = "ended without a word" if run.processes else "stopped"
    return f"{run.end or silent}, {of} done"


def _head(run: Record) -> str:
    when = f" as of {run.processes[-1]['seen']}" if run.processes else ""
    lines = [
        f"<header><h1>{escape(' '.join(run.command or ('a run of an earlier version',)))}</h1>",
        f'<p class="soft" id="folder">{escape(str(run.folder.absolute()))}</p>',
        f'<p><span class="state {run.state.strip("?")}" id="state">{escape(state_words(run))}</span>'
        f'<span class="clock soft">{escape(when)}</span></p>',
        *(f"<p>{escape(problem)}</p>" for problem in run.problems),
        f"<p>{escape(run.lesson)}</p>" if run.lesson else "",
        "</header>",
    ]
    return "\n".join(filter(None, lines))


def _figures(run: Record) -> str:
    figures = [(run.unit, f"{run.done} of {run.total or '?'}")]
    if run.measure:
        figures.append((f"{run.measure.name}, epoch {run.measure.epoch}", f"{run.measure.value:.4g}"))
    if run.candidates:
        spread = f"{run.candidates['mean']:.4g} ± {run.candidates['deviation']:.2g}"
        figures.append((f"{run.candidates['measure']}, mean and deviation", spread))
    if run.digits:
        figures.append(("the cell, in eight digits", run.digits))
    shown = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in figures
    )
    time = f'<div class="clock"><b>{clock_time(run.seconds)}</b><span>of all epochs</span></div>'
    return f'<div class="figures">{shown}{time if run.rows else ""}</div>'


def _candidates(run: Record) -> str:
    if not run.candidates:
        return ""
    name = run.candidates["measure"]
    rows = [
        (
            one["name"], "diverged" if one["measure"] is None else f"{one['measure']:.6g}",
            cell_digits(one["genotype"]) if one["genotype"] else "",
            "best" if one["name"] == run.candidates["best"] else "",
        )
        for one in run.candidates["candidates"]
    ]  # fmt: skip
    return section("Candidates", table(("candidate", name, "cell", ""), rows), name="candidates")


def _curves(run: Record) -> str:
    panels = [
        inline_curves(
            MEASURES.get(measure, measure),
            [Line(split, split, points) for split, points in lines.items()],
        )
        for measure, lines in curves_of(run.rows).items()
    ]
    if not panels:
        return ""
    splits = [split for split in SPLITS if any(name.startswith(f"{split}_") for name in run.rows[0])]
    keys = legend([(split, split) for split in splits])
    return section("Curves", f'{keys}<div class="panels">{"".join(panels)}</div>', name="curves")


def legend(names: Iterable[tuple[str, str]]) -> str:
    """Return what the colours of lines mean: (name, style) each."""
    keys = "".join(f'<span><i class="{style}"></i>{escape(name)}</span>' for name, style in names)
    return f'<div class="legend">{keys}</div>'


def cells(run: Record, *, name: str = "cells", title: str = "Cells") -> str:
    """Return the latest cells of a run as a part of a page."""
    if run.genotype is None:
        return ""
    drawn = "".join(
        f'<h3>{escape(title)}</h3><div class="wide">{svg}</div>' for title, svg in inline_cells(run.genotype)
    )
    text = f"<details><summary>as text</summary><pre>{escape(str(run.genotype))}</pre></details>"
    return section(title, drawn + text, name=name)


def _log(run: Record) -> str:
    if not run.rows:
        return ""
    names = list(dict.fromkeys(name for row in run.rows for name in row))
    rows = [[_number(row[name]) if name in row else "" for name in names] for row in run.rows]
    shown = table(names, rows, style="numbers", clock=CLOCK)
    return section(
        "Epochs", f"<details><summary>all numbers of the log</summary>{shown}</details>", name="log"
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _options(run: Record) -> str:
    if not run.options or run.command is None:
        return ""
    shown = {name: _value(value) for name, value in run.options.items()}
    changed = [name for name in run.changed or () if name in shown]
    parts = []
    if run.changed is not None:
        rows = [(name, shown[name]) for name in changed]
        other = table(("other than the default", "value"), rows) if rows else "<p>all at their defaults</p>"
        parts.append(f'<div id="changed">{other}</div>')
    rest = [(name, value) for name, value in shown.items() if name not in changed]
    closed = "" if run.changed is None else "<summary>at their defaults</summary>"
    left = table(("option", "value"), rest)
    parts.append(f"<details>{closed}{left}</details>" if closed else left)
    here = {name: run.options[name] for name in changed}
    commands = {"repeat it": repeat_command(run.folder, run.command, run.ranks)}
    if run.state != "finished":
        commands["go on with it"] = resume_command(run.folder, run.command, here, run.ranks)
    parts += [f"<h3>{name}</h3><pre>{escape(command)}</pre>" for name, command in commands.items()]
    return section("Options", "".join(parts), name="options")


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _times(run: Record) -> str:
    """Return how long phases took, how much was done a second, and how much memory it took."""
    parts, notes = [], list(run.notes.values())
    if notes:
        phases: dict[str, float] = {}
        for note in notes:
            for phase, seconds in note["seconds"].items():
                phases[phase] = phases.get(phase, 0.0) + seconds
        whole = sum(phases.values()) or 1.0
        rows = [
            (phase, clock_time(seconds), f"{seconds / len(notes):.3g} s", f"{100 * seconds / whole:.1f} %")
            for phase, seconds in phases.items()
        ]
        parts.append(table(("phase", "time", "an epoch", "share"), rows, style="numbers"))
        training = phases.get("training", 0.0) or 1.0
        iterations, work = (sum(note[name] for note in notes) for name in ("iterations", "work"))
        speed = f"{iterations / training:.4g} iterations a second"
        if unit := notes[-1]["unit"]:
            speed += f", {work / training:.4g} {unit} a second"
        parts.append(f"<p>While training: {escape(speed)}.</p>")
    memory: dict[str, int] = {}
    for process in run.processes:
        for kind, size in process["memory"].items():
            memory[kind] = max(memory.get(kind, 0), size)
    if memory:
        sizes = ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in memory.items())
        parts.append(f"<p>Peak memory: {escape(sizes)}.</p>")
    return section("Time, throughput, memory", "".join(parts), name="times")


def _environment(run: Record) -> str:
    if not run.processes:
        return ""
    rows = run.processes[-1]["environment"].items()
    columns = ("process", "began", "last seen", "from epoch, iteration", "end")
    lines = [
        (
            number, one["began"], one["seen"], f"{one['epochs_before'] + 1}, {one['iterations_before']}",
            one["end"] or ("goes on" if run.held and one is run.processes[-1] else "ended without a word"),
        )
        for number, one in enumerate(run.processes, start=1)
    ]  # fmt: skip
    shown = table(("environment", ""), rows) + "<h3>processes</h3>" + table(columns, lines, style="lines")
    return section("Environment", shown, name="environment")
