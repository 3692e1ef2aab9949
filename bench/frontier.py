"""Suite ``memory``: second-order iterations of both searches in every way to keep, and within budgets."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench import cnn_step, rnn_step, steps
from bench.options import Options
from bench.workloads import FRONTIERS, WORKLOADS

NAMES = {"cnn": cnn_step.network, "rnn": rnn_step.network}


def run(options: Options) -> dict[str, Any]:
    """Gate and measure all peers; errors as :func:`bench.steps.run`.

    A batch that is given is of images; of text there are four columns an image, as in the paper's searches.
    """
    given, rows = {}, []
    for network, workload in FRONTIERS.items():
        batch = options.batch and options.batch * workload.size.batch // WORKLOADS["cnn"].size.batch
        found = steps.run(workload, dataclasses.replace(options, batch=batch), orders=(2,))
        given[network] = found["conditions"]
        rows += [{"network": network, **row} for row in found["rows"]]
    return {"conditions": given, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """Return the rows as a markdown table a network."""
    rows = result["rows"]
    each = {name: [row for row in rows if row["network"] == name] for name in NAMES}
    return "\n\n".join(
        f"{name.upper()}:\n\n{steps.table({**result, 'rows': mine})}" for name, mine in each.items()
    )


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured."""
    each = [
        steps.conditions({**result, "conditions": given}, NAMES[name](given))
        for name, given in result["conditions"].items()
    ]
    return (
        f"{'; '.join(each)}; second order; peers with a size keep a memory budget; the reference with a mode "
        "is that with torch's checkpointing, by cell (`cell`) and by time step (`recompute`)"
    )
