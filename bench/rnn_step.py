"""Suite ``rnn_step``: a whole iteration of the RNN search, beside the matrix products that it consists of."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench import steps
from bench.gemm import FLOOR, flops
from bench.options import Options
from bench.rnn_peers import RNN


def run(options: Options) -> dict[str, Any]:
    """Gate and measure all peers, and the floor under them; errors as :func:`bench.steps.run`."""
    result = steps.run(RNN, options, FLOOR)
    given = result["conditions"]
    names = [field.name for field in dataclasses.fields(RNN.size)]
    size = dataclasses.replace(RNN.size, **{name: given[name] for name in names})
    seconds = {row["order"]: row["floor_s"] for row in result["rows"] if "share_floor" in row}
    gflop = {order: flops(size, order) / 1e9 for order in seconds}
    given["gflop"] = list(gflop.values())
    given["sgemm_gflops"] = [gflop[order] / seconds[order] for order in gflop]
    return result


def table(result: dict[str, Any]) -> str:
    """Return the rows as a markdown table."""
    return steps.table(result, steps.floor_columns("GEMM floor, s"))


def network(given: dict[str, Any]) -> str:
    """Return what was measured, in the words of its constructor, and the texts."""
    return (
        f"RNNModelSearch(nhid {given['nhid']}, vocabulary {given['vocabulary']:,}), BPTT {given['bptt']}, "
        f"{'the dropouts of the search' if given['dropout'] else 'no dropout'}"
    )


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured, and what the floor is."""
    given = result["conditions"]
    counted = " and ".join(
        f"{gflop:,.1f} GFLOP at {rate:.1f} GFLOP/s"
        for gflop, rate in zip(given["gflop"], given["sgemm_gflops"], strict=True)
    )
    return (
        f"{steps.conditions(result, network(given))}; the floor is sgemm of an iteration's own shapes, "
        f"timed in turn with the peers, the decoder's without the features that dropout drops, {counted} "
        f"for the two orders, and the share reached is the floor over the time"
    )
