"""Suite ``cnn_step``: a whole iteration of the CNN search."""

from __future__ import annotations

from typing import Any

from bench import steps
from bench.cnn_peers import CNN
from bench.options import Options


def run(options: Options) -> dict[str, Any]:
    """Gate and measure all peers; errors as :func:`bench.steps.run`."""
    return steps.run(CNN, options)


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured."""
    given = result["conditions"]
    return steps.conditions(
        result,
        f"Network(C={given['C']}, {given['classes']} classes, {given['layers']} layers), "
        f"{given['image']}x{given['image']} images",
    )
