"""Suite ``cnn_step``: a whole iteration of the CNN search, beside what its programs cannot do without."""

from __future__ import annotations

from typing import Any

from bench import steps
from bench.cnn_peers import CNN
from bench.device import open_device
from bench.floor import FLOOR, rates
from bench.options import Options


def run(options: Options) -> dict[str, Any]:
    """Gate and measure all peers, and the floor under them; errors as :func:`bench.steps.run`."""
    result = steps.run(CNN, options, FLOOR)
    given = result["conditions"]
    both = [rates(open_device(options.device), ms) for ms in given["floor_ms"].values()]
    given["sgemm_gflops"] = [flops / 1e9 for flops, _ in both]
    given["copy_gbs"] = [bandwidth / 1e9 for _, bandwidth in both]
    return result


def table(result: dict[str, Any]) -> str:
    """Return the rows as a markdown table."""
    return steps.table(result, steps.floor_columns("floor, s"))


def network(given: dict[str, Any]) -> str:
    """Return what was measured, in the words of its constructor, and the images."""
    return (
        f"Network(C={given['C']}, {given['classes']} classes, {given['layers']} layers), "
        f"{given['image']}x{given['image']} images"
    )


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured, and what the floor is."""
    given = result["conditions"]
    measured = steps.conditions(result, network(given))
    if "copy_gbs" not in given:  # a result of before there was a floor
        return measured
    both = zip(given["sgemm_gflops"], given["copy_gbs"], strict=True)
    timed = " and ".join(f"{flops:.1f} GFLOP/s and {bandwidth:.1f} GB/s" for flops, bandwidth in both)
    return (
        f"{measured}; the floor is, for every instruction of store's programs, the longer of its operations "
        f"at sgemm's rate and its bytes at copy's, timed in turn with the peers, {timed} for the two orders, "
        f"and the share reached is the floor over the time"
    )
