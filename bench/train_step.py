"""Suite ``train_step``: a step of a found cell's training, by the ways that torch has to compute it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.device import open_device
from bench.gate import disagreement
from bench.options import Options
from bench.peers import HOST, flat
from bench.timing import in_seconds, interleaved
from dartsfast.cnn import genotypes
from dartsfast.cnn.model import NetworkCIFAR

STOCK = "stock"
# Of the largest gradient, as for the searches: in float32 rounding can flip a relu.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-2}


@dataclass(frozen=True)
class Size:
    """The network and its batch; the defaults are the paper's training on CIFAR-10."""

    batch: int = 96
    C: int = 36
    layers: int = 20
    classes: int = 10
    cell: str = "DARTS_V2"


@dataclass(frozen=True)
class Peer:
    """A way to compute the network; autocast's dtype where it is not float32."""

    channels_last: bool = False
    compiled: bool = False
    autocast: torch.dtype | None = None


PEERS = {
    STOCK: Peer(),
    "channels_last": Peer(channels_last=True),
    "channels_last bf16": Peer(channels_last=True, autocast=torch.bfloat16),
    "compiled": Peer(compiled=True),
}
QUICK, GATE = Size(batch=2, C=4, layers=2), Size(batch=3, C=4, layers=3)


class Step:
    """A network, its optimiser and a batch of 32x32 images; the same numbers for all peers and devices."""

    def __init__(
        self, peer: Peer, size: Size, dtype: torch.dtype = torch.float32, device: torch.device = HOST
    ) -> None:
        torch.manual_seed(0)
        self.peer, self.device = peer, device
        layout = torch.channels_last if peer.channels_last else torch.contiguous_format
        model = NetworkCIFAR(size.C, size.classes, size.layers, True, getattr(genotypes, size.cell))
        self.model = model.to(device, dtype).to(memory_format=layout)
        self.forward: Any = torch.compile(self.model) if peer.compiled else self.model
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(size.batch, 3, 32, 32, generator=generator)
        self.x = images.to(device, dtype).to(memory_format=layout)
        self.y = torch.randint(size.classes, (size.batch,), generator=generator).to(device)

    def loss(self) -> Tensor:
        """Return the cross entropy of both classifiers, the second's times 0.4, without dropped paths."""
        autocast = self.peer.autocast
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            logits, logits_aux = self.forward(self.x)
            cross_entropy = nn.functional.cross_entropy
            return cross_entropy(logits, self.y) + 0.4 * cross_entropy(logits_aux, self.y)

    def run(self) -> None:
        """Move the weights, their gradient clipped to a norm of 5."""
        self.optimizer.zero_grad()
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()

    def loss_and_gradients(self) -> list[Tensor]:
        """Return the loss and its gradients by all weights, flat."""
        loss = self.loss()
        return [loss.detach(), flat(torch.autograd.grad(loss, list(self.model.parameters())))]


def run(options: Options) -> dict[str, Any]:
    """Gate and measure the peers, compiled ones if asked for; return conditions and rows."""
    device = open_device(options.device)
    size = QUICK if options.quick else Size()
    size = dataclasses.replace(size, batch=options.batch or size.batch)
    repeats = options.repeats or (1 if options.quick else 3)
    chosen = {n: p for n, p in PEERS.items() if options.compile or not p.compiled}
    refused = {name: reason for name, peer in chosen.items() if (reason := refusal(peer, device.place))}
    rows: list[dict[str, Any]] = [{"peer": name, "refused": reason} for name, reason in refused.items()]
    calls = {n: Step(p, size, device=device.place).run for n, p in chosen.items() if n not in refused}
    found = interleaved(calls, repeats, device)
    base = found.get(STOCK)
    for name, times in found.items():
        speedup = {"speedup": base["ms_p50"] / times["ms_p50"]} if base else {}
        rows.append({"peer": name, **times, "images_s": 1e3 * size.batch / times["ms_p50"], **speedup})
    return {"conditions": {**dataclasses.asdict(size), "repeats": repeats}, "rows": rows}


def refusal(peer: Peer, device: torch.device) -> str | None:
    """Return why ``peer`` must not be timed, or None: a small network's loss and gradients in float64.

    A compiled peer runs uncompiled here, and one under autocast without: the rounding is torch's own.
    """
    truth = Step(PEERS[STOCK], GATE, torch.float64, device).loss_and_gradients()
    plain = dataclasses.replace(peer, compiled=False, autocast=None)
    for dtype, tolerance in TOLERANCES.items():
        wrong = disagreement(Step(plain, GATE, dtype, device).loss_and_gradients(), truth, tolerance)
        if wrong:
            return f"loss and weight gradients in {str(dtype).removeprefix('torch.')}: {wrong}"
    return None


def table(result: dict[str, Any]) -> str:
    """Return the rows as a markdown table."""
    lines = ["| peer | step, s (p20-p80) | images a second | times faster |", "|---|---|---|---|"]
    for row in result["rows"]:
        if "refused" in row:
            lines.append(f"| {row['peer']} | not timed: {row['refused']} | | |")
            continue
        faster = f"{row['speedup']:.1f}" if "speedup" in row else ""
        lines.append(f"| {row['peer']} | {in_seconds(row)} | {row['images_s']:.1f} | {faster} |")
    return "\n".join(lines)


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured."""
    given = result["conditions"]
    return (
        f"NetworkCIFAR({given['cell']}, C={given['C']}, {given['layers']} cells, auxiliary classifier), "
        f"32x32 images, batch {given['batch']}, float32 but where bf16 is said (torch's autocast): a step of "
        f"the weights; medians of {given['repeats']} interleaved steps"
    )
