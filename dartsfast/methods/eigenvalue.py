"""RobustDARTS: the largest eigenvalue of the validation loss's Hessian by the alphas (Zela et al., 2020).

Where it grows, the cells that DARTS finds generalise badly; the paper (ICLR) smooths it over five epochs and
stops where mean(i - 5) / mean(i) < 0.75, with the cell of epoch i - 5.

Differences from the public code: it makes the whole Hessian, here it is Lanczos' iteration, with exact
products. What kernels compute can be differentiated once only, and finite differences fall over the kinks of
ReLU, so that one batch goes through ordinary modules. The log has the eigenvalue of every epoch, and a line
says where the paper stops; the search does with ``--stop eigenvalue`` (:mod:`dartsfast.methods.stops`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from dartsfast.bilevel.guard import preserved, random_state, set_random_state
from dartsfast.cnn.model_search import Network
from dartsfast.modules.plain import is_plain

STEPS = 4  # of Lanczos' iteration
WINDOW, RATIO = 5, 0.75


def largest_eigenvalue(loss: Tensor, alphas: Sequence[Tensor], steps: int = STEPS) -> float:
    """Return the largest eigenvalue of the Hessian of ``loss`` [] by ``alphas``.

    Args:
        loss: twice differentiable.
        alphas: leaves that it may depend on.
        steps: of the iteration; as many as there are numbers in ``alphas`` give it to the last digits.
    """

    def flat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.flatten() for t in tensors])

    gradient = flat(torch.autograd.grad(loss, alphas, create_graph=True, materialize_grads=True))
    generator = torch.Generator().manual_seed(0)  # draws nothing of the search's
    v = torch.randn(len(gradient), generator=generator, dtype=torch.float64)
    basis, diagonal, beside = (v / v.norm())[None], [], []
    for _ in range(min(steps, len(v))):
        along = gradient @ basis[-1].to(gradient)
        product = torch.autograd.grad(along, alphas, retain_graph=True, materialize_grads=True)
        w = flat(product).detach().double().cpu()
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # Gram and Schmidt, twice: once leaves what rounding brings in
            w = w - basis.T @ (basis @ w)
        beside.append(float(w.norm()))
        if beside[-1] <= 1e-6 * max(map(abs, diagonal)):  # there are no other directions from here
            break
        basis = torch.cat([basis, w[None] / beside[-1]])
    off = torch.tensor(beside[:-1], dtype=torch.float64)
    tridiagonal = torch.tensor(diagonal, dtype=torch.float64).diag() + off.diag(1) + off.diag(-1)
    return float(torch.linalg.eigvalsh(tridiagonal)[-1])


def monitored(model: Network, x: Tensor, y: Tensor) -> float:
    """Return the eigenvalue of the loss in training of images ``x`` [N, 3, H, W]; nothing else moves."""
    weights = [w for w in model.parameters() if w.requires_grad]
    training, before = model.training, random_state()
    try:
        for w in weights:
            w.requires_grad_(False)
        with preserved(list(model.buffers())), _on_modules(model):
            return largest_eigenvalue(model.train()._loss(x, y), model.arch_parameters())
    finally:
        for w in weights:
            w.requires_grad_(True)
        set_random_state(before)
        model.train(training)


class _Convolved(torch.autograd.Function):
    """A convolution by a fixed weight; of it and :class:`_Transposed` each is the other's derivative.

    Autograd's own second derivative goes group by group, for the weight's, whether or not that is asked for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: tuple[Any, ...]) -> Tensor:  # noqa: D102
        ctx.save_for_backward(weight)
        ctx.sizes, ctx.shape = sizes, x.shape
        return F.conv2d(x, weight, None, *sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: D102
        return _Transposed.apply(gradient, *ctx.saved_tensors, ctx.sizes, ctx.shape), None, None


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, sizes: Any, shape: torch.Size) -> Tensor:  # noqa: D102
        ctx.save_for_backward(weight)
        ctx.sizes = sizes
        return conv2d_input(shape, weight, gradient, *sizes)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: D102
        return _Convolved.apply(x, *ctx.saved_tensors, ctx.sizes), None, None, None


def _convolved(conv: Any, x: Tensor) -> Tensor:
    return _Convolved.apply(x, conv.weight, (conv.stride, conv.padding, conv.dilation, conv.groups))


@contextmanager
def _on_modules(model: Network) -> Iterator[None]:
    parts = [model, *model.cells]
    before = [part._backend for part in parts]
    # Those of accelerate, which edges of PC-DARTS have.
    forwards = {m: vars(m).pop("forward") for m in model.modules() if "forward" in vars(m)}
    convolutions = [
        m for m in model.modules() if is_plain(m, nn.Conv2d) and m.bias is None and m.padding_mode == "zeros"
    ]
    try:
        for part in parts:
            part._backend = "reference"
        for conv in convolutions:
            vars(conv)["forward"] = functools.partial(_convolved, conv)
        yield
    finally:
        for conv in convolutions:
            del vars(conv)["forward"]
        for part, backend in zip(parts, before, strict=True):
            part._backend = backend
        for module, forward in forwards.items():
            vars(module)["forward"] = forward


def stops(eigenvalues: Sequence[float]) -> bool:
    """Whether the paper would stop after these epochs."""
    if len(eigenvalues) < 2 * WINDOW:
        return False
    now, before = fmean(eigenvalues[-WINDOW:]), fmean(eigenvalues[-2 * WINDOW : -WINDOW])
    return now > 0 and before / now < RATIO
