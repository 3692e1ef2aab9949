"""Results as markdown: a table with its conditions, printed or put into a README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.suites import SUITES
from dartsfast.errors import InputError


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """Read the results in ``folder``, in the order of the suites.

    Raises:
        InputError: none there, or a file that is not a result.
    """
    results = []
    for name in SUITES:
        file = Path(folder) / f"{name}.json"
        if not file.exists():
            continue
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file} is not JSON: {error}; run the suite again") from error
        if not isinstance(result, dict) or {"suite", "header", "conditions", "rows"} - set(result):
            raise InputError(f"{file} is not a result of `python -m bench`; run the suite again")
        results.append(result)
    if not results:
        raise InputError(f"no results in {folder}: run `python -m bench --out {folder}` first")
    return results


def markdown(result: dict[str, Any]) -> str:
    """Return a result's table with its conditions below."""
    suite, head = SUITES[result["suite"]], result["header"]
    gpu = f"{head['device']}, " if "device" in head else ""
    note = "**Tiny sizes (`--quick`): these are no figures.** " if result["quick"] else ""
    return (
        f"{suite.table(result)}\n\n{note}"
        f"Suite `{result['suite']}`: {suite.conditions(result)}. {gpu}{head['cpu']}, {head['cores']} cores, "
        f"threads: {head['threads']}, kernels {head['instruction_set']}, Python {head['python']}, "
        f"torch {head['torch']}, commit {head['commit']}, {head['date']}."
    )


def insert(readme: str | Path, results: list[dict[str, Any]]) -> None:
    """Replace what is between ``<!-- bench:SUITE -->`` and ``<!-- /bench:SUITE -->`` in ``readme``.

    A file may have the markers of some suites only.

    Raises:
        InputError: no markers of any result, or markers that are not one pair.
    """
    path = Path(readme)
    if not path.exists():
        raise InputError(f"no file {path}; --readme takes a file that has the bench markers")
    text = path.read_text(encoding="utf-8")
    placed = 0
    for result in results:
        start, end = f"<!-- bench:{result['suite']} -->", f"<!-- /bench:{result['suite']} -->"
        if start not in text and end not in text:
            continue
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise InputError(f"{path} needs one line {start} and, below it, one line {end}")
        before, after = text[: text.index(start) + len(start)], text[text.index(end) :]
        text = f"{before}\n{markdown(result)}\n{after}"
        placed += 1
    if not placed:
        suites = ", ".join(result["suite"] for result in results)
        raise InputError(f"{path} has no line <!-- bench:SUITE --> of {suites}")
    path.write_text(text, encoding="utf-8")
