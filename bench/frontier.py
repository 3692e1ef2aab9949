"""Suite ``memory``: an iteration of the CNN search in every way to keep, and within budgets."""

from __future__ import annotations

from typing import Any

from bench import cnn_step, steps
from bench.cnn_peers import MEMORY
from bench.options import Options

table = steps.table


def run(options: Options) -> dict[str, Any]:
    """Gate and measure all peers; errors as :func:`bench.steps.run`."""
    return steps.run(MEMORY, options)


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured."""
    return (
        f"{cnn_step.conditions(result)}; peers with a size keep a memory budget, `reference cell` is the "
        "reference with torch's checkpointing by cell"
    )
