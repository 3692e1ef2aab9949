"""What the programs of a CNN search cannot do without: the time of their operations, or of their bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bench.cnn_peers import Size
from bench.device import Device
from bench.steps import Floor
from dartsfast.cnn.model_search import Network
from dartsfast.fused.costs import costs
from dartsfast.fused.passes import Pass, iteration

# How often a sample repeats them.
PRODUCTS, COPIES = 16, 2


def calls(size: Size, order: int, device: Device) -> dict[str, Callable[[], Any]]:
    """Return what gives the two rates: products of square matrices, and copies that fit no cache."""
    a, b, c = (torch.rand(device.gemm_size, device.gemm_size, device=device.place) for _ in range(3))
    x, y = (torch.rand(device.copy_elements, device=device.place) for _ in range(2))

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=c)

    def copy() -> None:
        for _ in range(COPIES):
            y.copy_(x)

    return {"sgemm": multiply, "copy": copy}


def rates(device: Device, ms: Mapping[str, float]) -> tuple[float, float]:
    """Return operations and bytes a second, from the milliseconds of both calls."""
    operations = PRODUCTS * 2 * device.gemm_size**3
    moved = COPIES * 2 * 4 * device.copy_elements  # read and written, float32
    return 1e3 * operations / ms["sgemm"], 1e3 * moved / ms["copy"]


def passes(size: Size, order: int, device: Device) -> list[Pass]:
    """Return the programs of an iteration that stores what its backward needs, in float32."""
    with torch.device("meta"):
        network = Network(
            size.C, size.classes, size.layers, nn.CrossEntropyLoss(), backend=device.backend, memory="store"
        )
    return iteration(network, (size.batch, 3, size.image, size.image), order)


def seconds(size: Size, order: int, device: Device, ms: Mapping[str, float]) -> float:
    """Return what an iteration takes where each instruction takes the longer of operations and bytes."""
    flops, bandwidth = rates(device, ms)
    return sum(
        p.times * max(cost.operations / flops, (cost.read + cost.written) / bandwidth)
        for p in passes(size, order, device)
        for run in p.runs
        for *_, cost in costs(run.program, run.dtype)
    )


FLOOR = Floor(calls, seconds)
