"""What the check launches, found without a GPU: programs on tensors without values, and their Triton kernels.

A launch is described by what the compiler sees of it: dtypes and alignment of tensors, which integers are 1
or multiples of 16, constants. Launches of one description share their machine code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

from bench.counting import META

ALIGNMENT = 16  # bytes, and what integers are multiples of


@dataclass(frozen=True)
class Pointer:
    """A tensor as the compiler sees it."""

    dtype: torch.dtype
    aligned: bool


@dataclass(frozen=True)
class Description:
    """A launch as the compiler sees it: the kernel's module and name, arguments, options and constants."""

    module: str
    kernel: str
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    def compile(self, *, launcher: bool = False) -> None:
        """Compile for the target of the active driver; what was compiled lies in Triton's cache.

        Args:
            launcher: also what hands the arguments over, where Triton (3.6) compiles that for every
                signature; needs the library of CUDA's driver, and no GPU.
        """
        kernel = getattr(importlib.import_module(self.module), self.kernel)
        args = tree_map(_tensor, self.args)
        compiled = kernel.run(*args, grid=(1,), warmup=True, **dict(self.options))
        if launcher and hasattr(nvidia, "make_launcher"):
            nvidia.CudaLauncher(compiled.src, compiled.metadata)


def _tensor(value: Any) -> Any:
    if not isinstance(value, Pointer):
        return value
    whole = torch.empty(2, dtype=value.dtype, device=META)
    return whole if value.aligned else whole[1:]


def described(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Description:
    """Return the description of the launch ``kernel[grid](*args, **options)``."""
    given = tuple(
        _seen(value, not parameter.do_not_specialize)
        for parameter, value in zip(kernel.params, args, strict=False)
    )
    return Description(kernel.fn.__module__, kernel.fn.__name__, given, tuple(sorted(options.items())))


def _seen(value: Any, specialized: bool) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_seen(member, specialized) for member in value)
    if isinstance(value, Tensor):
        return Pointer(value.dtype, value.data_ptr() % ALIGNMENT == 0)
    if isinstance(value, int) and not isinstance(value, bool):
        wide = 2**31 if value >= 2**31 else 0
        if not specialized:
            return 3 + wide
        return wide + (1 if value == 1 else ALIGNMENT if value % ALIGNMENT == 0 else 3)
    return 0.5 if isinstance(value, float) else value


class Target:
    """Stands in for a driver: what Triton asks of one before a launch, of a GPU that need not be there."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """Return the target."""
        return self.target

    def get_current_device(self) -> int:
        """Return the device whose kernels are meant."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0


@contextmanager
def targeting(capability: int) -> Iterator[None]:
    """Let Triton compile for a GPU of ``capability`` (90: sm_90) within the block."""
    before = driver._active
    driver.set_active(Target(capability))
    try:
        yield
    finally:
        driver._active = before


def launched(call: Callable[[], Any], capability: int) -> list[Description]:
    """Return the descriptions of what ``call()`` launches on tensors without values, each once."""
    found: dict[Description, None] = {}

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found[described(self, args, options)] = None

    with targeting(capability), mock.patch.object(triton.JITFunction, "run", record):
        call()
    return list(found)
