"""Suite ``descendants``: an iteration of networks that know nothing of kernels, stock and accelerated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dartsfast
from bench.device import open_device
from bench.gate import disagreement
from bench.miniatures import Dense, Partial, Stacked
from bench.options import Options
from bench.peers import HOST, flat
from bench.timing import in_seconds, interleaved
from dartsfast.cnn.model_search import Network

STOCK, ACCELERATED, OURS = "stock", "accelerated", "dartsfast.cnn"
# Of the largest gradient, as for the searches: in float32 rounding can flip a relu.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-2}


@dataclass(frozen=True)
class Size:
    """The networks and their batch; ``cells`` are those of a stage of dense cells."""

    batch: int = 16
    C: int = 16
    layers: int = 8
    nodes: int = 4
    cells: int = 3


QUICK = GATE = Size(batch=2, C=8, layers=3, nodes=2, cells=1)

NETWORKS: dict[str, Callable[[Size], Any]] = {
    "sums of all": lambda s: Stacked(C=s.C, layers=s.layers, nodes=s.nodes),
    "partial channels": lambda s: Stacked(Partial, C=s.C, layers=s.layers, nodes=s.nodes, betas=True),
    "dense cells": lambda s: Dense(C=s.C, cells=s.cells),
}


class Pass:
    """A network and a batch of 32x32 images."""

    def __init__(
        self, network: str, peer: str, size: Size, dtype: torch.dtype = torch.float32,
        device: torch.device = HOST,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        if peer == OURS:
            loss = nn.CrossEntropyLoss()
            model: Any = Network(size.C, 10, size.layers, loss, size.nodes, size.nodes).to(device, dtype)
            self.alphas = model._arch_parameters
        else:
            model = NETWORKS[network](size).to(device, dtype)
            model.arch = [a.detach().to(device, dtype).requires_grad_() for a in model.arch]
            self.alphas = model.arch
        if peer == ACCELERATED:
            dartsfast.accelerate(model, strict=True)
        self.model = model
        self.x = torch.randn(size.batch, 3, 32, 32).to(device, dtype)
        self.y = torch.randint(10, (size.batch,)).to(device)

    def loss_and_gradients(self) -> list[Tensor]:
        """Return the loss and its gradients by all weights and alphas, flat."""
        loss = F.cross_entropy(self.model(self.x), self.y)
        tensors = [*self.model.parameters(), *self.alphas]
        found = torch.autograd.grad(loss, tensors, allow_unused=True)
        return [loss.detach(), flat(tuple(g for g in found if g is not None))]

    def run(self) -> None:
        """Compute the loss and all gradients."""
        self.loss_and_gradients()


def run(options: Options) -> dict[str, Any]:
    """Gate and measure every network; return conditions and rows."""
    device = open_device(options.device)
    size = QUICK if options.quick else Size()
    size = dataclasses.replace(size, batch=options.batch or size.batch)
    repeats = options.repeats or (1 if options.quick else 5)
    rows: list[dict[str, Any]] = []
    for network in NETWORKS:
        if (reason := refusal(network, device.place)) is not None:
            rows.append({"network": network, "peer": ACCELERATED, "refused": reason})
            continue
        peers = [STOCK, ACCELERATED, *([OURS] if network == "sums of all" else [])]
        calls = {peer: Pass(network, peer, size, device=device.place).run for peer in peers}
        found = interleaved(calls, repeats, device)
        for peer, times in found.items():
            speedup = found[STOCK]["ms_p50"] / times["ms_p50"]
            rows.append({"network": network, "peer": peer, **times, "speedup": speedup})
    return {"conditions": {**dataclasses.asdict(size), "repeats": repeats}, "rows": rows}


def refusal(network: str, device: torch.device) -> str | None:
    """Return why a network must not be timed, or None: a small one's loss and gradients in both dtypes."""
    truth = Pass(network, STOCK, GATE, torch.float64, device).loss_and_gradients()
    for dtype, tolerance in TOLERANCES.items():
        found = Pass(network, ACCELERATED, GATE, dtype, device).loss_and_gradients()
        if wrong := disagreement(found, truth, tolerance):
            return f"loss and gradients in {str(dtype).removeprefix('torch.')}: {wrong}"
    return None


def table(result: dict[str, Any]) -> str:
    """Return the rows as a markdown table."""
    lines = ["| network | peer | pass, s (p20-p80) | times faster |", "|---|---|---|---|"]
    for row in result["rows"]:
        if "refused" in row:
            lines.append(f"| {row['network']} | {row['peer']} | not timed: {row['refused']} | |")
            continue
        lines.append(f"| {row['network']} | {row['peer']} | {in_seconds(row)} | {row['speedup']:.2f} |")
    return "\n".join(lines)


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured."""
    given = result["conditions"]
    return (
        f"C={given['C']}, {given['layers']} cells of {given['nodes']} nodes (dense cells: 3 stages of "
        f"{given['cells']}), 32x32 images, batch {given['batch']}, float32: loss and all gradients; "
        f"medians of {given['repeats']} interleaved passes"
    )
