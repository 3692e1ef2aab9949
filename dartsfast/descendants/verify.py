"""Every distinct operation computed both ways, once, before anything is trusted to it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast.caches import Cache
from dartsfast.descendants.lazy import Lazy
from dartsfast.descendants.recognise import Recognised, signature
from dartsfast.descendants.served import Served

_CLOSE = 1e-9
"""Largest difference, of values of about one, that sums of another order may make in float64."""

_known: Cache[str] = Cache(4096)


def verified(module: nn.Module, found: Recognised) -> str | None:
    """Return how an operation on kernels differs from the user's own; None where it does not."""
    key = _distinct(module, found)
    if key is None:
        return _difference(module, found) or None
    return _known.get(key, lambda: _difference(module, found)) or None


def _distinct(module: nn.Module, found: Recognised) -> Any:
    """Return what an operation's difference depends on; None where that cannot be said."""
    own = signature(module)
    layers = tuple(layer.extra_repr() for layer in found.layers)
    return None if own is None else (own, layers, found.stride, found.relu, module.training)


def _difference(module: nn.Module, found: Recognised) -> str:
    """Say how the two ways differ; nothing where they do not."""
    both = []
    generator = torch.Generator().manual_seed(0)
    C = 2 if found.channels is None else found.channels[0]
    x = torch.randn(2, C, 6, 6, generator=generator, dtype=torch.float64)
    for fused in (False, True):
        with torch.random.fork_rng(devices=[]):
            one = copy.deepcopy(module).to(device="cpu", dtype=torch.float64)
            forward = Served(one, found, "auto", "store") if fused else None
            both.append(_computed(one, forward, x))
    for name, (a, b) in zip(("result", "gradients", "statistics"), zip(*both, strict=True), strict=True):
        if [t is None for t in a] != [t is None for t in b]:
            return f"its {name} on kernels are not there for the same tensors"
        pairs = [(s, t) for s, t in zip(a, b, strict=True) if s is not None and t is not None]
        far = max((_distance(s, t) for s, t in pairs), default=0.0)
        if not far <= _CLOSE:
            return f"its {name} on kernels differ by {far:.1e}"
    return ""


def _computed(
    module: nn.Module, forward: Served | None, x: Tensor
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
    """Return result, gradients and buffers of 0.7 times an operation, twice."""
    parameters = list(module.parameters())
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    results: list[Tensor | None] = []
    gradients: list[Tensor | None] = []
    for scale in (1.0, -2.0):
        given = (x * scale).requires_grad_()
        with torch.enable_grad():
            out = weight * (type(module).forward(module, given) if forward is None else forward(given))
            if isinstance(out, Lazy):
                out = out.value()
            seed = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).view(out.shape)
            asked = [given, weight, *(p for p in parameters if p.requires_grad)]
            gradients += torch.autograd.grad(out, asked, seed, allow_unused=True)
        results.append(out.detach())
    return results, gradients, [buffer.double() for buffer in module.buffers()]


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / (1.0 + b.abs().max())) if a.numel() else 0.0
