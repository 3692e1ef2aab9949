"""A short check of the grouped kernels against stock torch, on the device where they are about to be used.

As :mod:`dartsfast.backends.selfcheck` does for single operators, and ``DARTSFAST_SELFCHECK=0`` skips it too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.backends.selfcheck import REMEDY, failures, tf32
from dartsfast.constants import plain
from dartsfast.errors import BackendError
from dartsfast.fused.edge import Edge, Stage

TOLERANCE, TF32_TOLERANCE = 1e-4, 1e-2
"""Largest difference from float64, of the largest element: batch norms make rounding errors larger, those of
factors that ``DARTSFAST_TF32=1`` rounds to 11 bits too."""
C = 12
WEIGHTS = [(C, 1, 3, 3), (C, C, 1, 1), (C, 1, 3, 3), (C, C, 1, 1), (C, 1, 5, 5), (C, C, 1, 1)]
_checked: set[torch.device] = set()
_begun: set[torch.device] = set()
_checking = threading.RLock()

Run = Callable[[Edge, Tensor, Tensor], Tensor]
"""What computes an edge [N, H, W, C] of x [N, H, W, C] with mixing weights [1, ops]."""


def require(device: torch.device, run: Run) -> None:
    """Check ``run`` on ``device``, once.

    Raises:
        BackendError: it does not run, or disagrees with stock torch.
    """
    if device in _checked or os.environ.get("DARTSFAST_SELFCHECK") == "0":
        return
    with _checking:  # what other threads ask for waits; what the check itself asks for does not
        if device not in _checked | _begun:
            _begun.add(device)
            try:
                _check(device, run)
            finally:  # also where something else, such as Ctrl-C, ended the check
                _begun.discard(device)
            _checked.add(device)


def _check(device: torch.device, run: Run) -> None:
    tolerance = TF32_TOLERANCE if tf32() else TOLERANCE
    try:
        with plain(), torch.enable_grad():
            found = _difference(device, run)
    except failures() as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise BackendError(
            f"grouped kernels do not run on {device}: {type(error).__name__}: {reason}. {REMEDY}"
        ) from error
    if not found <= tolerance:
        raise BackendError(
            f"grouped kernels on {device} differ from stock torch by {found:.2g} of the largest element (at "
            f"most {tolerance} is rounding): they do not work on this device. {REMEDY}"
        )


def _difference(device: torch.device, run: Run) -> float:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 7, 6, C), (1, 5), *WEIGHTS, (2, 7, 6, C)]
    *given, seed = (torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes)
    found = _gradients(
        [t.to(device) for t in given], seed.to(device), lambda x, w, *own: run(_edge(own), x, w)
    )
    wanted = _gradients([t.double() for t in given], seed.double(), _stock)
    pairs = zip(found, wanted, strict=True)
    return max(
        ((a.cpu().double() - b).abs().max() / b.abs().max()).nan_to_num(torch.inf).item() for a, b in pairs
    )


def _gradients(given: list[Tensor], seed: Tensor, compute: Callable[..., Tensor]) -> list[Tensor]:
    """Return what ``compute`` gives, and its gradients by all tensors."""
    for t in given:
        t.requires_grad_()
    out = compute(*given)
    return [out.detach(), *torch.autograd.grad(out, given, seed)]


def _edge(weights: tuple[Tensor, ...]) -> Edge:
    a, b, d = (
        Stage(weights[k : k + 2], dilation, nn.BatchNorm2d(C, affine=False, device=weights[0].device))
        for k, dilation in ((0, 1), (2, 1), (4, 2))
    )
    pools: list[tuple[int, nn.BatchNorm2d | None]] = [
        (half, nn.BatchNorm2d(C, affine=False, device=weights[0].device)) for half in range(2)
    ]
    return Edge(1, tuple(range(5)), separable=[(a, b)], single=[d], pools=pools, skips=1)


def _stock(x: Tensor, mixing: Tensor, *weights: Tensor) -> Tensor:
    x = x.permute(0, 3, 1, 2)

    def stage(x: Tensor, k: int, dilation: int) -> Tensor:
        reach = dilation * (weights[k].shape[-1] // 2)
        t = F.conv2d(x.relu(), weights[k], padding=reach, dilation=dilation, groups=C)
        return F.batch_norm(F.conv2d(t, weights[k + 1]), None, None, training=True)

    most, mean = F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    pools = (F.batch_norm(pool, None, None, training=True) for pool in (most, mean))
    operations = [stage(stage(x, 0, 1), 2, 1), stage(x, 4, 2), *pools, x]
    return sum(w * o for w, o in zip(mixing[0], operations, strict=True)).permute(0, 2, 3, 1)
