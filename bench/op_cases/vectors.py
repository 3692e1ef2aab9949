"""The second-order step's vector arithmetic, beside plain expressions on the same flat vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.op_cases.case import OURS, STOCK, Case, Peers, Timed, drawing, no_grad
from dartsfast.ops import fd_norm, fd_perturb_, fd_quotient, fd_virtual_step_

WEIGHTS = {"CNN": 1_930_618, "RNN": 4_810_000}
"""Of Network(16, 10 classes, 8 layers), and of RNNModelSearch(nhid 300, vocabulary 10,000)."""
R, RATE, MOMENTUM, DECAY = 0.01, 0.025, 0.9, 3e-4
# Vectors that a pass reads or writes.
PASSES = {"norm": 1, "perturb": 3, "virtual step": 4, "quotient": 3}


def vector_cases(*, quick: bool = False) -> list[Case]:
    """Return all weights of both searches as a vector, or a tiny one."""
    return [vector_case(name, 500 if quick else n) for name, n in WEIGHTS.items()]


def vector_case(name: str, n: int) -> Case:
    """Norm, perturbation, virtual step and quotient of ``n`` weights."""

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        w, v, other = draw(n), draw(n), draw(n)
        length, scale = v.square().sum().sqrt(), draw().abs()
        ours, stock = w.clone(), w.clone()  # each moves its own weights
        passes: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "norm": (
                lambda: fd_norm(v),
                lambda: torch.dot(v, v).sqrt(),
            ),  # vector_norm loses four digits here
            "perturb": (
                lambda: _moved(fd_perturb_, ours, w, v, length, R, -1.0),
                lambda: torch.sub(w, v * (R / length), out=stock),
            ),
            "virtual step": (
                lambda: _moved(fd_virtual_step_, ours, v, other, scale, RATE, MOMENTUM, DECAY),
                lambda: stock.sub_(RATE * (MOMENTUM * other + DECAY * stock + scale * v)),
            ),
            "quotient": (
                lambda: fd_quotient(v, other, length, R),
                lambda: (v - other) / (2 * (R / length)),
            ),
        }
        timed = lambda call: Timed(no_grad(call), lambda out: [out.clone()])  # noqa: E731
        return {key: {OURS: timed(a), STOCK: timed(b)} for key, (a, b) in passes.items()}

    return Case("fd_hvp", f"{name}, {n:,} weights", build, bytes={k: 4 * n * of for k, of in PASSES.items()})


def _moved(op: Callable[..., None], w: Tensor, *args: Any) -> Tensor:
    op(w, *args)
    return w
