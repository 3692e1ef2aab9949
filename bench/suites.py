"""The registry of suites, and how one is run and its result kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cnn_step, descendants, frontier, hvp, model, ops, plots, rnn_step, train_step
from bench.device import open_device
from bench.machine import header, threads
from bench.options import Options
from dartsfast.errors import InputError

__all__ = ["SUITES", "Options", "Suite", "run_suite", "save_result"]


@dataclass(frozen=True)
class Suite:
    """A suite.

    Attributes:
        about: a line for ``--list``.
        run: options to ``conditions`` and ``rows``.
        table: result to a markdown table.
        conditions: result to the sentence that stands beside its table.
        draw: result and path without suffix to the files of its pictures.
    """

    about: str
    run: Callable[[Options], dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    conditions: Callable[[dict[str, Any]], str]
    draw: Callable[[dict[str, Any], Path], list[Path]]


SUITES = {
    "ops": Suite(
        "every operator against stock functions and the machine's ceilings",
        ops.run,
        ops.table,
        ops.conditions,
        plots.draw_ops,
    ),
    "cnn_step": Suite(
        "an iteration of the CNN search: time and memory of backends and references, beside a floor",
        cnn_step.run,
        cnn_step.table,
        cnn_step.conditions,
        plots.draw_steps,
    ),
    "memory": Suite(
        "second-order iterations of both in every way to keep, and within budgets: peak against time",
        frontier.run,
        frontier.table,
        frontier.conditions,
        plots.draw_memory,
    ),
    "rnn_step": Suite(
        "an iteration of the RNN search: the same, beside its matrix products",
        rnn_step.run,
        rnn_step.table,
        rnn_step.conditions,
        plots.draw_steps,
    ),
    "train_step": Suite(
        "a step of a found cell's training: stock, channels_last, bf16, compiled",
        train_step.run,
        train_step.table,
        train_step.conditions,
        plots.draw_train_step,
    ),
    "descendants": Suite(
        "a pass of networks that know nothing of kernels: stock, accelerated",
        descendants.run,
        descendants.table,
        descendants.conditions,
        plots.draw_descendants,
    ),
    "hvp": Suite(
        "the Hessian-vector product: what it costs beyond its two passes",
        hvp.run,
        hvp.table,
        hvp.conditions,
        plots.draw_hvp,
    ),
    "model": Suite(
        "an ESTIMATE of iterations on GPUs: launches and bytes counted, nothing timed",
        model.run,
        model.table,
        model.conditions,
        plots.draw_model,
    ),
}


def run_suite(name: str, options: Options) -> dict[str, Any]:
    """Run suite ``name``; return ``suite``, ``header`` (machine, versions, commit), ``conditions``, ``rows``.

    Raises:
        InputError: unknown suite, numbers that cannot work, or a device or backend that is not available.
    """
    if name not in SUITES:
        raise InputError(f"unknown suite {name!r}: choose from {', '.join(SUITES)}")
    options.check()
    device = open_device(options.device)
    with threads(options.threads), device.exact():
        found = SUITES[name].run(options)
        return {"suite": name, "quick": options.quick, "header": header(device), **found}


def save_result(result: dict[str, Any], out: str | Path) -> list[Path]:
    """Write ``<suite>.json``, ``.png`` and ``.svg`` to the folder ``out``; return the paths."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{result['suite']}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return [file, *SUITES[result["suite"]].draw(result, folder / result["suite"])]
