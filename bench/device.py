"""What is timed on: the CPU or a CUDA GPU. All that differs between them is here."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from bench.resident import Sampler, resident_megabytes
from dartsfast.errors import InputError


class Device(ABC):
    """A device and its clock.

    Attributes:
        place: the device as torch names it.
        backend: the fused backend that serves it.
        gemm_size: rows and columns of the matrices whose product is the ceiling.
        copy_elements: float32 numbers of the copy that is the ceiling: too many for any cache.
    """

    place: torch.device
    backend: str
    gemm_size: int
    copy_elements: int

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The model of the device; None for the CPU, which every result names anyway."""

    @abstractmethod
    def seconds(self, call: Callable[[], Any], times: int) -> float:
        """Run ``call`` so often and return what all took together."""

    @abstractmethod
    def now(self) -> float:
        """Return seconds on a clock, once everything before is done."""

    @abstractmethod
    def peak_megabytes(self, call: Callable[[], Any]) -> float:
        """Run ``call`` and return how much memory it took at most above what was taken before, MB."""

    def exact(self) -> AbstractContextManager[Any]:
        """Return a context in which stock float32 is IEEE float32, as the kernels' is."""
        return nullcontext()


class CPU(Device):
    """The CPU; memory is the process's resident memory."""

    place = torch.device("cpu")
    backend = "cpu"
    gemm_size = 1024
    copy_elements = 2**26
    name = None

    def seconds(self, call: Callable[[], Any], times: int) -> float:
        """Run ``call`` so often, one after the other, and return what all took together."""
        began = time.perf_counter()
        for _ in range(times):
            call()
        return time.perf_counter() - began

    def now(self) -> float:
        """Return seconds on a clock."""
        return time.perf_counter()

    def peak_megabytes(self, call: Callable[[], Any]) -> float:
        """Run ``call`` and return the peak of resident memory above what it was, MB."""
        idle = resident_megabytes()
        sampler = Sampler()
        sampler.start()
        call()
        return sampler.finish() - idle


class CUDA(Device):
    """The current CUDA GPU; memory is what torch's allocator has handed out."""

    place = torch.device("cuda")
    backend = "triton"
    gemm_size = 4096
    copy_elements = 2**28

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(self.place).L2_cache_size
        self._flushed = torch.empty(2 * cache, dtype=torch.int8, device=self.place)

    @property
    def name(self) -> str:
        """The model of the GPU."""
        return torch.cuda.get_device_name(self.place)

    def flush(self) -> None:
        """Write more than the L2 cache holds, so that no call finds its inputs there."""
        self._flushed.zero_()

    def seconds(self, call: Callable[[], Any], times: int) -> float:
        """Run ``call`` so often, each time after a flush, and return what the events around it add up to."""
        spans = []
        for _ in range(times):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush()
            before.record()
            call()
            after.record()
            spans.append((before, after))
        torch.cuda.synchronize()
        return sum(before.elapsed_time(after) for before, after in spans) / 1e3

    def now(self) -> float:
        """Return seconds on a clock, once the GPU is idle."""
        torch.cuda.synchronize()
        return time.perf_counter()

    def peak_megabytes(self, call: Callable[[], Any]) -> float:
        """Run ``call`` and return the peak of allocated memory above what it was, MB."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - idle) / 1e6

    def exact(self) -> AbstractContextManager[Any]:
        """Return a context in which cuDNN's convolutions do not round to TF32 (products do not anyway)."""
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def open_device(name: str) -> Device:
    """Return the device called ``cpu`` or ``cuda``.

    Raises:
        InputError: another name, or no GPU that torch can use.
    """
    if name == "cpu":
        return CPU()
    if name != "cuda":
        raise InputError(f"--device must be cpu or cuda, got {name!r}")
    if not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU (see `dartsfast doctor`); use --device cpu")
    return CUDA()
