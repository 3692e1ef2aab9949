"""CUDA C++ kernels on the CPU, for tests: every thread a fiber, every access checked.

``build.library`` compiles ``.cu`` files, ``Emulated`` loads what it made.
"""

import ctypes
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

ORDERS = ("forward", "reverse", "random")


class Finding(NamedTuple):
    """Something that a kernel does wrong: ``synchronisation``, ``bounds``, ``uninitialised`` or ``race``."""

    kind: str
    text: str


class Counters(ctypes.Structure):
    """What checked launches moved; the comments of ``traffic.h`` say what is counted."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "launches",
            "bytes_read",
            "bytes_written",
            "sectors_read",
            "sectors_written",
            "shared_accesses",
            "bank_conflicts",
            "atomics",
        )
    ]


class Emulated:
    """A library of kernels and the emulator. What the kernels do wrong is kept, not thrown."""

    def __init__(self, path: Path):
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.emulator_finding_kind.restype = ctypes.c_char_p
        self.library.emulator_finding_text.restype = ctypes.c_char_p
        self.library.emulator_finding_place.restype = ctypes.c_uint64
        self.library.emulator_counters.restype = ctypes.POINTER(Counters)
        self.library.emulator_kernel_name.restype = ctypes.c_char_p
        self.library.emulator_kernel_counters.restype = ctypes.POINTER(Counters)
        self.registered: list[torch.Tensor] = []
        self.reset()

    def reset(self):
        """Forget memory, findings and counters."""
        self.library.emulator_collect(1)
        self.library.emulator_clear_counters()
        self.library.emulator_forget_memory()
        self.registered.clear()

    def order(self, order: str, seed: int = 0):
        """Let threads of a block, and blocks, run in this order from now on."""
        self.library.emulator_order(ORDERS.index(order), ctypes.c_uint64(seed))

    def memory(self, initialised: bool = True, **tensors: torch.Tensor):
        """Let kernels use dense tensors under these names; what is not initialised must be written first."""
        for name, tensor in tensors.items():
            nbytes = ctypes.c_uint64(tensor.numel() * tensor.element_size())
            self.library.emulator_memory(pointer(tensor), nbytes, name.encode(), int(initialised))
            self.registered.append(tensor)

    def call(self, launcher: str, *args: torch.Tensor | int | float):
        """Call a launcher with pointers to tensors, ints and floats."""
        self.library[launcher](*(_argument(arg) for arg in args))

    def findings(self) -> list[Finding]:
        """Return what was found since the last call, with lines of the code."""
        found = []
        for i in range(self.library.emulator_findings()):
            kind = self.library.emulator_finding_kind(i).decode()
            place = self.library.emulator_finding_place(i)
            text = self.library.emulator_finding_text(i).decode()
            found.append(Finding(kind, f"{text}{', ' + self._line(place) if place else ''}"))
        self.library.emulator_collect(1)
        return found

    def counters(self) -> dict[str, int]:
        """Return the counters since the last reset."""
        return _numbers(self.library.emulator_counters())

    def by_kernel(self) -> dict[str, dict[str, int]]:
        """Return the same of every kernel, by its template's name without arguments."""
        found: dict[str, Counter[str]] = {}
        for i in range(self.library.emulator_kernels()):
            name = re.search(r"(\w+)(?:<.*>)?\(", self.library.emulator_kernel_name(i).decode())
            assert name is not None, "a kernel is a function"
            numbers = _numbers(self.library.emulator_kernel_counters(i))
            found.setdefault(name[1], Counter()).update(numbers)
        return {name: dict(counters) for name, counters in found.items()}

    def _line(self, place: int) -> str:
        command = ["addr2line", "-s", "-i", "-e", str(self.path), hex(place)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
        return " in ".join(line.split(" ")[0] for line in lines if line)


def _numbers(counters) -> dict[str, int]:
    return {name: getattr(counters.contents, name) for name, _ in Counters._fields_}


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Return the address of a tensor's first element."""
    return ctypes.c_void_p(tensor.data_ptr())


def _argument(arg):
    if isinstance(arg, torch.Tensor):
        return pointer(arg)
    return ctypes.c_float(arg) if isinstance(arg, float) else arg
