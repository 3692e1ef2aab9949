"""The matrix products of the RNN search: what an iteration cannot do without, and how long they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.device import Device
from bench.rnn_peers import SEARCH, Size
from bench.steps import Floor
from dartsfast.rnn.genotypes import STEPS

# Passes of an iteration, by order. The weights' are the weight step and, in second order, the gradient of
# the virtual step and the validation pass; the alphas' are the validation pass or the two differences.
ALPHA_PASSES = {1: 1, 2: 2}
WEIGHT_PASSES = {1: 1, 2: 3}


@dataclass(frozen=True)
class Gemm:
    """The product [rows, inner] x [inner, columns] of a forward, ``times`` over.

    ``of_data``: of the embedded words, which get a gradient only where the weights do. ``dropped``: the
    share of the inner features that locked dropout drops, of which no product is needed.
    """

    name: str
    rows: int
    inner: int
    columns: int
    times: int
    of_data: bool = False
    dropped: float = 0

    @property
    def kept(self) -> int:
        """Inner features that are multiplied, rounded."""
        return round(self.inner * (1 - self.dropped))

    @property
    def flops(self) -> int:
        """Floating point operations of all ``times``, in the forward as in each gradient."""
        return 2 * self.rows * self.kept * self.columns * self.times


def gemms(size: Size) -> list[Gemm]:
    """Return the products of a forward: nodes take all states before them at once, words all time steps."""
    B, H, T = size.batch, size.nhid, size.bptt
    nodes = [Gemm(f"node {i + 1}", B * (i + 1), H, 2 * H, T) for i in range(STEPS)]
    return [
        Gemm("words", T * B, H, 2 * H, 1, of_data=True),
        Gemm("hidden", B, H, 2 * H, T),
        *nodes,
        Gemm("decoder", T * B, H, size.vocabulary, 1, dropped=SEARCH.dropout if size.dropout else 0),
    ]


def passes(gemm: Gemm, order: int) -> dict[str, int]:
    """Return how often an iteration takes ``gemm`` forward and for each of its gradients.

    A pass for the alphas alone needs no gradient of a weight, and none of the words.
    """
    alphas, weights = ALPHA_PASSES[order], WEIGHT_PASSES[order]
    return {
        "forward": alphas + weights,
        "input gradient": weights if gemm.of_data else alphas + weights,
        "weight gradient": weights,
    }


def flops(size: Size, order: int) -> int:
    """Return the floating point operations of an iteration's products."""
    return sum(gemm.flops * sum(passes(gemm, order).values()) for gemm in gemms(size))


def floor(size: Size, order: int, device: Device) -> dict[str, Callable[[], None]]:
    """Return what runs an iteration's products, shape by shape, as often as it needs them: ``sgemm``."""
    calls = []
    for gemm in gemms(size):
        products = _products(gemm, device)
        calls += [(products[kind], gemm.times * count) for kind, count in passes(gemm, order).items()]

    def run() -> None:
        for product, times in calls:
            for _ in range(times):
                product()

    return {"sgemm": run}


def _products(gemm: Gemm, device: Device) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the product and those of its two gradients, float32."""
    shapes = (gemm.rows, gemm.kept), (gemm.kept, gemm.columns), (gemm.rows, gemm.columns)
    x, w, y = (torch.rand(shape, device=device.place) for shape in shapes)
    dx, dw, out = (torch.empty_like(t) for t in (x, w, y))
    return {
        "forward": lambda: torch.mm(x, w, out=out),
        "input gradient": lambda: torch.mm(y, w.t(), out=dx),
        "weight gradient": lambda: torch.mm(x.t(), y, out=dw),
    }


FLOOR = Floor(floor, lambda size, order, device, ms: ms["sgemm"] / 1e3)
