"""What the cases of the suite ``ops`` share.

Every case has the same inputs in all dtypes (drawn in float32) and gives, pass by pass and peer by
peer, something to call and a view of its result that all peers share, in which the gate compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

kernels = torch.ops.dartsfast
OURS, WITH_SUMS, STOCK, STOCK_LAST = "dartsfast", "dartsfast + sums", "stock", "stock channels_last"


@dataclass
class Timed:
    """Something to time, and its outputs as the gate compares them."""

    call: Callable[[], Any]
    view: Callable[[Any], Sequence[Tensor]]


Peers = dict[str, Timed]


@dataclass
class Case:
    """An operator on one shape.

    Attributes:
        op: its name.
        label: the shape in words.
        build: dtype and device to the peers of every pass.
        flops: floating point operations of a pass, where they are what a pass consists of.
        bytes: float32 bytes that a pass cannot but read or write.
    """

    op: str
    label: str
    build: Callable[[torch.dtype, torch.device], dict[str, Peers]]
    flops: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


def drawing(dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
    """Return a source of normal numbers that are the same in every dtype and on every device."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)


def gradients(
    outputs: Any, inputs: Sequence[Tensor], g: Any, view: Callable[[Any], Sequence[Tensor]]
) -> Timed:
    """Return autograd's gradients of ``outputs`` by ``inputs``, ``g`` being given."""
    return Timed(lambda: torch.autograd.grad(outputs, inputs, g, retain_graph=True), view)


def no_grad(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``call`` without autograd."""

    def without() -> Any:
        with torch.no_grad():
            return call()

    return without


def as_in_a_node(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``call`` as a node of the network makes it: below autograd, which records the node alone."""

    def below() -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return call()

    return below
