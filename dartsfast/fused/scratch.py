"""What kernels for CUDA ask for beside a program's own memory, as ``csrc/cuda/*.call.h`` ask for it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from dartsfast.fused.memory import in_use
from dartsfast.fused.program import Instruction, Place, Program, Ref

_CHUNK = 64  # pixels, of csrc/order.h
_TICKETS = 4 << 15  # bytes of csrc/cuda/tickets.h, which a program's kernels share
_RESIDENT = {(16, 32), (32, 16), (64, 8)}  # channels and width of images that stay in shared memory
_ADJOINTS = 8  # branches that a launch takes
_MOST_RESIDENT = 4


def scratch(program: Program, dtype: torch.dtype) -> int:
    """Return the bytes that kernels of a program have at most at a time.

    What a section's kernels have lives as long as it runs; sums of weights' gradients, image by image, live
    until the program ends, where all are added at once.
    """
    with_memory = in_use(program)

    def has_memory(ref: Ref) -> bool:
        kept = program.slots[ref.slot].place != Place.TEMPORARY
        return prod(ref.shape) > 0 and (kept or ref.slot in with_memory)

    most = lasting = 0
    for section in program.sections:
        passing = 0
        for i in section:
            if i.op == "branch_conv_backward":
                asked = [ref for part in i.writes[1:3] for ref in part if has_memory(ref)]
                lasting += i.reads[3][0].shape[0] * sum(prod(ref.shape) for ref in asked)
                passing += _adjoints(i, bool(asked), any(map(has_memory, i.writes[1])), dtype)
            elif i.op in _SUMS:
                passing += _SUMS[i.op](i)
        most = max(most, passing + lasting)
    return _TICKETS + most * dtype.itemsize


def _chunks(image: Ref) -> int:
    """Return how many sums an image [N, H, W, C] leaves a channel."""
    N, H, W, _ = image.shape
    return int(N * -(-H // max(1, _CHUNK // W)))


def _adjoints(i: Instruction, weights: bool, taps: bool, dtype: torch.dtype) -> int:
    """Return the elements of the gradients between depthwise and pointwise convolutions, and of means."""
    g, z, _, (x,), _, depthwise, pointwise, _, _ = i.reads
    dx, _, _, means = i.writes
    N, H, W, C = x.shape
    found = 2 * C * _chunks(x) if means else 0
    resident = (
        dtype == torch.float32
        and (C, W) in _RESIDENT
        and H <= W
        and i.numbers[0] == 1
        and len(pointwise) <= _MOST_RESIDENT
        and all(w.shape[0] == C for w in pointwise)
        and bool(z and depthwise and (dx or weights))
        and {(w.shape[-1], d) for w, d in zip(depthwise, i.numbers[2:], strict=True)}
        <= {(kernel, dilation) for kernel in (3, 5) for dilation in (1, 2)}
    )
    direct = dx and len(pointwise) == 1 and not depthwise and not means
    if resident or direct or not (dx or taps):
        return found
    channels = -(-C // 4) * 4
    found += len(pointwise) * prod(g[0].shape[:3]) * channels
    if dx and len(pointwise) > _ADJOINTS:
        found += N * H * W * channels
    return found


# Elements of the partial sums of other operators.
_SUMS: dict[str, Callable[[Instruction], int]] = {
    "branch_conv": lambda i: sum(2 * z.shape[3] * _chunks(z) for z in i.writes[0]),
    "pool3x3": lambda i: 4 * i.reads[0][0].shape[3] * _chunks(i.writes[0][0]),
    "mixed_sum_backward": lambda i: (1 + len(i.reads[1])) * i.reads[0][0].shape[3] * _chunks(i.reads[0][0]),
}
