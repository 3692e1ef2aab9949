"""How kernels are launched: one place, so that a launch can be counted, modelled or compiled only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from dartsfast.kernels.autotune import tuned
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, many_registers: bool = False, **meta: Any) -> None:
    """Run ``kernel`` over ``grid``, without contraction: the order of operations is part of a contract.

    Left to itself NVIDIA's assembler aims at a round number of registers and may spill a few for it;
    with ``many_registers`` it takes what it needs.
    """
    meta["enable_fp_fusion"] = False
    if many_registers and _on_nvidia():
        meta["maxnreg"] = 255
    kernel[grid](*args, **{**meta, **tuned(kernel, grid, args, meta)})


def _on_nvidia() -> bool:
    if triton.knobs.runtime.interpret:
        return False
    return triton.runtime.driver.active.get_current_target().backend == "cuda"


def accumulator(tensor: Tensor) -> tl.dtype:
    """Return the dtype of arithmetic on what ``tensor`` stores: float64 for itself, else float32."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def block(size: int, least: int = 1, most: int = 1 << 20) -> int:
    """Return the smallest power of two that holds ``size``, between ``least`` and ``most``."""
    return max(least, min(most, 1 << (size - 1).bit_length()))


def dense(tensor: Tensor) -> Tensor:
    """Return ``tensor`` itself where its last dimension is dense, else a copy: kernels take other strides."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def all_dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return :func:`dense` of every tensor, one layout for all: the strides of the first."""
    found = [dense(t) for t in tensors]
    same = all(t.stride() == found[0].stride() for t in found)
    return found if same else [t.contiguous() for t in found]
