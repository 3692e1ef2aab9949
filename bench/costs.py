"""What a launch costs, from its own arguments: bytes, operations, rounds of memory, and the host's arguments.

A Triton kernel that is not in :data:`OPERATIONS` raises, so that none is forgotten. A fused multiply-add is
two operations; what padded lanes do is not counted. A round is a trip to memory that the one before it must
have ended for: a program that goes through its pixels or partial results in blocks makes one after the
other, and where few programs run, nothing hides them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

Arguments = Mapping[str, Any]
Grid = tuple[int, ...]
Operations = Callable[[Arguments, Grid], int]
Rounds = Callable[[Arguments, Grid], int]


@dataclass(frozen=True)
class Launch:
    """A launch.

    Attributes:
        name: its kernel or stock operator.
        bytes: what it touches.
        operations: in floating point.
        triton: whether it is a Triton kernel.
        rounds: trips to memory one after the other within a program; 0 where others hide them.
        arguments: what Triton's launcher looks at one by one, members of tuples each.
    """

    name: str
    bytes: int
    operations: int
    triton: bool
    rounds: int = 0
    arguments: int = 0


def extent(tensor: Tensor) -> int:
    """Return the bytes that the elements of ``tensor`` occupy; what is expanded counts once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes, start=min(tensor.numel(), 1)) * tensor.element_size()


def storage(tensor: Tensor) -> int:
    """Return what tells apart storages that are alive, also those on the device meta."""
    return tensor.untyped_storage()._cdata


def touched(arguments: Arguments, again: tuple[str, ...] = ()) -> int:
    """Return the bytes of all tensors in ``arguments``, nested ones too: once, those of ``again`` twice."""
    tensors = [t for t in tree_leaves(dict(arguments)) if isinstance(t, Tensor)]
    distinct = {(storage(t), t.storage_offset(), t.shape, t.stride(), t.dtype): t for t in tensors}
    return sum(map(extent, distinct.values())) + sum(extent(arguments[name]) for name in again)


def kernel_launch(name: str, arguments: Arguments, grid: Grid) -> Launch:
    """Return the cost of a Triton kernel.

    Raises:
        LookupError: there is no formula for it.
    """
    if name not in OPERATIONS:
        raise LookupError(f"no operations are known of the kernel {name}: add a formula to bench/costs.py")
    used = arguments
    if name == "input_gradient_kernel" and arguments["depthwise"] is not None:
        used = {key: value for key, value in arguments.items() if key not in IN_DT}
    rounds = ROUNDS[name](arguments, grid) if name in ROUNDS else 0
    size = touched(used, AGAIN.get(name, ()))
    return Launch(
        name, size, OPERATIONS[name](arguments, grid), True, rounds, len(tree_leaves(dict(arguments)))
    )


def each(argument: str, operations: int) -> Operations:
    """Return a formula: so many operations an element of a tensor, or of all tensors of a tuple."""
    return lambda a, grid: operations * sum(t.numel() for t in tree_leaves(a[argument]))


def _branches(a: Arguments) -> int:
    return len(a["pointwise"] if "pointwise" in a else a["partial"])


def _depthwise(a: Arguments) -> int:
    """A depthwise convolution of every branch, or its adjoint."""
    weights = a.get("depthwise", True)
    if weights is None or isinstance(weights, tuple) and weights[0] is None:
        return 0
    return 2 * a["pixels"] * a["Ci"] * a["UI"] * sum(K * K for K in a["K"])


def _pointwise(a: Arguments) -> int:
    """A pointwise convolution of every branch, its adjoint or the gradient of its weights."""
    return 2 * a["pixels"] * a["Ci"] * a["UI"] * a["Co"] * a["UO"] * _branches(a)


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


OPERATIONS: dict[str, Operations] = {
    "alpha_softmax_kernel": each("alphas", 60),
    "alpha_softmax_backward_kernel": each("p", 4),
    # Every block of output channels computes the depthwise output for itself.
    "branch_conv_kernel": lambda a, grid: _pointwise(a) + _depthwise(a) * grid[1],
    "pointwise_adjoint_kernel": lambda a, grid: _pointwise(a),
    "input_gradient_kernel": lambda a, grid: _depthwise(a) or _pointwise(a),
    "pointwise_gradient_kernel": lambda a, grid: _pointwise(a) + _depthwise(a) * grid[1],
    "depthwise_gradient_kernel": lambda a, grid: _depthwise(a),
    "weight_sums_kernel": each("partial", 1),
    "sum_kernel": each("partial", 1),
    "moments_kernel": each("partial", 5),
    "mixed_sum_kernel": each("z", 4),
    "mixed_sum_backward_kernel": each("z", 5),
    "mixed_sum_means_kernel": each("partial", 1),
    "norm_stats_kernel": each("stats", 4),
    "norm_stats_backward_kernel": each("norm", 1),
    "pool3x3_kernel": each("most", 40),  # nine taps, and two halves' statistics
    "pool3x3_place_kernel": each("place", 18),
    "pool3x3_backward_kernel": lambda a, grid: a["dx"].numel() * 12 * (9 if a["STRIDE"] == 1 else 4),
    "fd_norm_kernel": each("v", 12),
    "fd_norm_join_kernel": each("partial", 12),
    "fd_perturb_kernel": each("w", 2),
    "fd_virtual_step_kernel": each("w", 7),
    "fd_quotient_kernel": each("out", 2),
    "rnn_node_kernel": each("states", 90),  # two exponentials and three divisions
    "rnn_node_backward_kernel": each("states", 130),
}
"""Operations of a launch of every kernel."""

ROUNDS: dict[str, Rounds] = {
    "moments_kernel": lambda a, grid: 2 * _blocks(a["parts"], a["PARTS"]),
    "sum_kernel": lambda a, grid: _blocks(a["parts"], a["PARTS"]),
    "weight_sums_kernel": lambda a, grid: _blocks(a["parts"], a["PARTS"]),
    "mixed_sum_means_kernel": lambda a, grid: (
        _blocks(a["parts"], a["PARTS"]) * _blocks(a["units"] * a["UNIT"], a["BC"])
    ),
    "mixed_sum_backward_kernel": lambda a, grid: _blocks(a["pixels"], a["BP"] * grid[0]),
    "fd_norm_join_kernel": lambda a, grid: 2 * _blocks(a["parts"], a["LANES"]),
    "pointwise_gradient_kernel": lambda a, grid: _blocks(a["span"], a["BP"]),
    # Through its pixels again for every block of taps.
    "depthwise_gradient_kernel": lambda a, grid: (
        _blocks(a["span"], a["BP"]) * max(_blocks(K * K, a["BT"]) for K in a["K"])
    ),
    "rnn_node_kernel": lambda a, grid: _blocks(a["B"], a["BB"]) * (a["P"] + (a["norm"] is None)),
    "rnn_node_backward_kernel": lambda a, grid: _blocks(a["B"], a["BB"]) * (1 + a["OWN"]),
}
"""Rounds of a program of the kernels that go through pixels or partial results in a loop."""

IN_DT = {"g", "z", "coef", "pointwise"}
"""What the kernel of the input gradient does not read where it is given dt, which was made of them."""

AGAIN = {"fd_virtual_step_kernel": ("w",)}
"""Arguments that are both read and written."""
