"""A short check of every operator against its ordered oracle, on the device where it is about to be used.

A compiler or a device that computes something else must not go unnoticed: the first use of an operator
on a device runs it on a small sample and refuses it where it disagrees. ``DARTSFAST_SELFCHECK=0`` skips
that; ``dartsfast doctor --deep`` checks everything that can run here.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from dartsfast.constants import plain
from dartsfast.errors import BackendError

TOLERANCE, TF32_TOLERANCE = 1e-5, 2e-3
"""Largest difference in float32, of the largest element: a few rounding errors of the longest sums, or of
factors that ``DARTSFAST_TF32=1`` rounds to 11 bits."""

Samples = Callable[[Callable[..., Tensor]], tuple[Any, ...]]


def _forward_conv(normal: Callable[..., Tensor]) -> tuple[Any, ...]:
    # More pixels than the second pass of a sum takes at once.
    x, norm = normal(2, 51, 43, 12), torch.stack([normal(12), normal(12).abs() + 0.5])
    depthwise = [normal(12, 1, 3, 3), normal(12, 1, 5, 5)]
    return x, norm, depthwise, [normal(20, 12, 1, 1), normal(20, 12, 1, 1)], [2, 1], 1, True


def _backward_conv(normal: Callable[..., Tensor]) -> tuple[Any, ...]:
    g, z = ([normal(2, 51, 43, 20) for _ in range(2)] for _ in range(2))
    return g, z, normal(2, 4, 20), *_forward_conv(normal), normal(2, 51, 43, 12), True, True


def _locked(normal: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return normal(7, 2, 9), normal(2, 9).relu(), normal(9, 33)


def _node(normal: Callable[..., Tensor]) -> tuple[Any, ...]:
    return normal(3, 6, 40), normal(3, 6, 20), normal(3, 4)


def _node_of_a_step(normal: Callable[..., Tensor]) -> tuple[Any, ...]:
    given = *_node(normal), normal(6, 20).relu(), True, 1e-5
    return normal(6, 20), normal(6, 20), [normal(6, 20)], normal(2, 20), *given


def _node_of_a_step_backward(normal: Callable[..., Tensor]) -> tuple[Any, ...]:
    # Few channels: which of several parts of the weights' gradient is added to is the kernels' own affair.
    B, H = 70, 4
    arriving, given = [normal(B, H) for _ in range(3)], (normal(3, B, 2 * H), normal(3, B, H), normal(3, 4))
    node = normal(B, H), normal(H).abs(), *given, normal(B, H).relu()
    return normal(3, B, 2 * H), normal(3, B, H), normal(1, 3, 4), *arriving, *node, 1e-5, True, False


def _norms(normal: Callable[..., Tensor]) -> tuple[Any, ...]:
    means, variances = ([normal(12).abs() for _ in range(3)] for _ in range(2))
    batches = [torch.tensor(count) for count in (0, 3, 8)]
    return normal(3, 2, 12).abs(), means, variances, batches, None, 1e-5, 50


SAMPLES: dict[str, Samples] = {
    "alpha_softmax": lambda normal: ([normal(14, 8), normal(5, 3)],),
    "alpha_softmax_backward": lambda normal: ([normal(14, 8).softmax(1)], [normal(14, 8)]),
    "branch_conv": _forward_conv,
    "branch_conv_backward": _backward_conv,
    "cross_entropy_": lambda normal: (normal(5, 70), normal(70), torch.arange(5), 0.2),
    "fd_norm": lambda normal: (normal(5000),),
    "fd_perturb_": lambda normal: (*(normal(500) for _ in range(3)), normal().abs(), 0.01, -1.0),
    "fd_quotient": lambda normal: (normal(500), normal(500), normal().abs(), 0.01),
    "fd_virtual_step_": lambda normal: (*(normal(500) for _ in range(3)), normal().abs(), 0.025, 0.9, 3e-4),
    "gemm_": lambda normal: (normal(13, 33), normal(13, 330), normal(330, 33), True),
    "locked_linear_": lambda normal: (normal(2, 7, 33), *_locked(normal)),
    "locked_linear_input_gradient_": lambda normal: (normal(7, 2, 9), normal(2, 7, 33), *_locked(normal)[1:]),
    "locked_linear_weight_gradient_": lambda normal: (normal(9, 33), normal(2, 7, 33), *_locked(normal)[:2]),
    "mixed_sum": lambda normal: (
        [normal(2, 5, 6, 12) for _ in range(3)],
        *(normal(3, 12) for _ in range(2)),
        normal(3),
        normal(2, 5, 6, 12),
    ),
    "mixed_sum_backward": lambda normal: (
        normal(2, 5, 6, 12),
        [normal(2, 5, 6, 12) for _ in range(3)],
        *(normal(3, 12) for _ in range(2)),
    ),
    "norm_stats_": _norms,
    "norm_stats_backward": lambda normal: (
        normal(1, 12).expand(3, 12),
        normal(3, 12),
        normal(3, 2, 12),
        normal(3),
        torch.tensor([1.0, 0.0, 1.0], dtype=torch.float32),
    ),
    "pool3x3": lambda normal: (normal(2, 5, 6, 12), 2),
    "pool3x3_backward": lambda normal: (
        *([normal(2, 3, 3, 12) for _ in range(2)] for _ in range(2)),
        normal(2, 4, 12),
        normal(2, 5, 6, 12),
        2,
        normal(2, 5, 6, 12),
    ),
    "rnn_node": lambda normal: (*_node(normal), None, 1e-5),
    "rnn_node_": _node_of_a_step,
    "rnn_node_backward_": _node_of_a_step_backward,
    "rnn_node_backward": lambda normal: (
        *(normal(6, 20) for _ in range(2)),
        normal(20).abs(),
        *_node(normal),
        1e-5,
        True,
        None,
    ),
}
"""Arguments of every operator, from a function that draws normal tensors of a shape."""


_running = threading.local()  # a check calls the operator, which must not be checked once more


REMEDY = "Use backend='reference', and report it with the output of `dartsfast doctor --deep`"


def failures() -> tuple[type[Exception], ...]:
    """Return what kernels that do not compile, load or launch raise: Triton, its compilers, drivers."""
    failures = RuntimeError, OSError, subprocess.SubprocessError
    try:
        from triton.errors import TritonError
    except ImportError:  # then no kernel is Triton's
        return failures
    return *failures, TritonError


def difference(name: str, device: torch.device) -> float:
    """Run operator ``name`` of ``dartsfast.ops`` on ``device``.

    Returns:
        Its largest distance from the oracle, of the largest element.

    Raises:
        BackendError: it does not run at all; the cause is chained.
    """
    with plain():
        return _difference(name, device)


def _difference(name: str, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    args = SAMPLES[name](lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float32))
    family = {"fd": "fd_hvp", "locked": "locked_linear", "rnn": "rnn_node"}.get(name.split("_")[0])
    module = family or name.removesuffix("_backward").rstrip("_")
    oracle = importlib.import_module(f"dartsfast.oracle.{module}")
    wanted = tree_leaves(getattr(oracle, name)(*args))
    there = tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, args)
    _running.now = True
    try:
        found = _run(name, there)
    except failures() as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise BackendError(f"{name} does not run on {device}: {type(error).__name__}: {reason}") from error
    finally:
        _running.now = False
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if b.numel()]
    return max(((a - b).abs().max() / b.abs().max()).nan_to_num(torch.inf).item() for a, b in pairs)


def _run(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """Return what an operator gives, then the arguments that it wrote: float64 on the CPU."""
    op = getattr(torch.ops.dartsfast, name).default
    got = [op(*args)]
    got += [t for t, a in zip(args, op._schema.arguments, strict=False) if a.alias_info is not None]
    return [t.cpu().to(torch.float64) for t in tree_leaves(got) if t is not None]


def tf32() -> bool:
    """Whether the factors of products are rounded to 11 bits, as the environment asks for."""
    return os.environ.get("DARTSFAST_TF32") == "1"


def tolerance(name: str) -> float:
    """Return the largest difference from the oracle that operator ``name`` may have."""
    return TF32_TOLERANCE if name.startswith("branch_conv") and tf32() else TOLERANCE


def require(name: str, device: torch.device) -> None:
    """Check operator ``name`` on ``device``, once; nothing within a check.

    Raises:
        BackendError: it does not run, or disagrees with the oracle.
    """
    if not getattr(_running, "now", False):
        _require(name, device)


@functools.cache
def _require(name: str, device: torch.device) -> None:
    if os.environ.get("DARTSFAST_SELFCHECK") == "0":
        return
    try:
        found = difference(name, device)
    except BackendError as error:
        raise BackendError(f"{error}. {REMEDY}") from error.__cause__
    if not found <= tolerance(name):
        raise BackendError(
            f"{name} on {device} differs from its oracle by {found:.2g} of the largest element (at most "
            f"{tolerance(name)} is rounding): its kernels do not work on this device. {REMEDY}"
        )
