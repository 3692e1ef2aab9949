"""What ``accelerate`` made of a model, as a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from dartsfast.descendants.recognise import Recognised


@dataclass
class Report:
    """What is fused of a model, and what is not.

    Attributes:
        fused: how many operations of each kind compute on kernels.
        ordinary: how many run as they are, by (class, reason).
        arithmetic: multiply-adds a pixel of the source of all fused operations, and of all others.
        note: why nothing is fused, where nothing is.
    """

    fused: Counter[str] = field(default_factory=Counter)
    ordinary: Counter[tuple[str, str]] = field(default_factory=Counter)
    arithmetic: list[float] = field(default_factory=lambda: [0.0, 0.0])
    note: str = ""

    def add(self, module: nn.Module, found: Recognised | str) -> None:
        """Enter an operation."""
        own = isinstance(found, str) or found.operation.kind == "library"
        self.arithmetic[own] += multiply_adds(module)
        if isinstance(found, str):
            self.ordinary[type(module).__name__, found] += 1
        else:
            self.fused[kind(found)] += 1

    def refuse(self, reason: str) -> None:
        """Let everything that would be fused run as it is."""
        for name, count in self.fused.items():
            self.ordinary[name, reason] += count
        self.fused.clear()
        self.arithmetic = [0.0, sum(self.arithmetic)]
        self.note = reason

    @property
    def share(self) -> float:
        """The share of operations that are fused."""
        count = self.fused.total()
        return count / max(count + self.ordinary.total(), 1)

    @property
    def share_of_arithmetic(self) -> float:
        """The share of multiply-adds, images being of one size, that are fused."""
        return self.arithmetic[0] / max(sum(self.arithmetic), 1.0)

    def __str__(self) -> str:
        rows = [("fused", str(n), name) for name, n in self.fused.most_common()]
        rows += [
            ("ordinary", str(n), f"{name}: {reason}") for (name, reason), n in self.ordinary.most_common()
        ]
        lines = [f"{where:9}{count:>6}  {what}" for where, count, what in rows]
        lines.append(
            f"{self.share:.0%} of the operations and {self.share_of_arithmetic:.0%} of their multiply-adds "
            "(images of one size) are fused"
        )
        return "\n".join([*lines, self.note] if self.note else lines)


def kind(found: Recognised) -> str:
    """Name an operation by what it computes."""
    name, parts = found.operation
    stride = f", stride {found.stride}" if found.stride > 1 else ""
    relu = "relu, " if found.relu else ""
    if name == "pool":
        norm = "" if parts[1] is None else ", norm"
        return f"{'average' if parts[0] else 'maximum'} pool 3x3{norm}{stride}"
    if name in ("skip", "zero"):
        return {"skip": "identity", "zero": "zero"}[name] + stride
    if name == "reduce":
        return "factorized reduction"
    if name == "library":
        return f"{relu}convolution (torch's own), norm{stride}"
    stage = parts[0]
    if len(stage.weights) == 1:
        return f"{relu}convolution 1x1, norm{stride}"
    dilated = f" dilated by {stage.dilation}" if stage.dilation > 1 else ""
    size = stage.weights[0].shape[-1]
    twice = "twice " if name == "separable" else ""
    return f"{twice}{relu}depthwise {size}x{size}{dilated}, pointwise, norm{stride}"


def multiply_adds(module: nn.Module) -> float:
    """Return the multiply-adds of an operation's convolutions, for every pixel of the source."""
    total, scale = 0.0, 1.0
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            here = 1.0 / (m.stride[0] * m.stride[1])  # of factorized reductions both halves stride
            total += m.weight.numel() * min(scale, here)
            scale = min(scale, here)
    return total
