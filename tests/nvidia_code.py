"""Reads what kernels for NVIDIA need and do from cubins, with the tools that Triton brings along."""

import itertools
import re
import struct
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
from occupancy import RESERVED, occupancy

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")
# A generic access may be one to global memory. The G of some came with sm_90.
LOADS, STORES = {"LDG", "LDGSTS", "LD"}, {"STG", "ST"}
ATOMICS = {"ATOM", "ATOMG", "ATOMS", "RED", "REDG"}
DOUBLE = {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX"}
MAX_THREADS, WITH_SIZE = 0x05, 0x04  # an attribute of a kernel, and a format of attributes


@dataclass(frozen=True)
class Usage:
    """What a kernel needs and does; counts are of instructions."""

    registers: int  # of a thread
    shared: int  # bytes of a block
    occupancy: float  # 0 to 1
    stack: int  # bytes of a thread, spills included
    spills: int
    loads: dict[int, int]  # of global memory, by bytes
    stores: dict[int, int]
    double: int  # float64 arithmetic and conversions
    atomics: tuple[str, ...]

    @property
    def narrow(self):
        """Accesses to global memory of less than 16 bytes."""
        return sum(n for width, n in (*self.loads.items(), *self.stores.items()) if width < 16)


def codes(cubin):
    """Return the machine code of a cubin's kernels, by their mangled names."""
    text = ".text."
    return {name[len(text) :]: code for name, code in _sections(cubin).items() if name.startswith(text)}


def max_threads(cubin, kernel):
    """Return how many threads ``__launch_bounds__`` grants a kernel's block, ``None`` without them."""
    info = _sections(cubin)[f".nv.info.{kernel}"]
    place = 0
    while place < len(info):
        kind, attribute, value = struct.unpack_from("<BBH", info, place)
        place += 4
        if kind == WITH_SIZE:
            if attribute == MAX_THREADS:
                x, y, z = struct.unpack_from("<III", info, place)
                return x * y * z
            place += value
    return None


def resources(cubin, target):
    """Return {kernel: what a thread and a block need, by cuobjdump's names}."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for name, line in re.findall(r" Function (\S+):\n(.*)", text):
        found[name] = {kind: int(n) for kind, n in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", line)}
        if target == "sm_90" and found[name]["SHARED"]:
            found[name]["SHARED"] -= RESERVED  # which count there where a kernel uses shared memory
    return found


def operations(codes, target):
    """Return the operations of every kernel's machine code, such as ``LDG.E.128``, as lists.

    The disassembler takes half a second to start: it gets the code of all in one file.
    """
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        machine = target.upper().replace("_", "")
        command = [TOOLS / "nvdisasm", "--binary", machine, "--no-dataflow", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ends = list(itertools.accumulate(len(code) for code in codes))
    lists = [[] for _ in codes]
    place = 0
    for address, operation in SASS.findall(text):
        while int(address, 16) >= ends[place]:
            place += 1
        lists[place].append(operation)
    return lists


def usage(target, warps, shared, need, operations):
    """Return the usage of a kernel of ``warps`` warps a block, with its ``resources`` and ``operations``."""
    assert "EXIT" in operations and "REG" in need
    parts = [operation.split(".") for operation in operations]
    kinds = Counter(first for first, *_ in parts)
    return Usage(
        need["REG"],
        shared,
        occupancy(target, warps, need["REG"], shared),
        need["STACK"] + need["LOCAL"],
        kinds["LDL"] + kinds["STL"],
        Counter(_width(rest) for first, *rest in parts if first in LOADS),
        Counter(_width(rest) for first, *rest in parts if first in STORES),
        sum(
            first in DOUBLE or any(part in ("F64", "RCP64H", "RSQ64H") for part in rest)
            for first, *rest in parts
        ),
        tuple(name for name, (first, *_) in zip(operations, parts, strict=True) if first in ATOMICS),
    )


def _sections(cubin):
    """Return the contents of a cubin's sections; it is an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    names = sections[names][4]
    named = {cubin[names + s[0] : cubin.index(b"\0", names + s[0])].decode(): s for s in sections}
    return {name: cubin[s[4] : s[4] + s[5]] for name, s in named.items()}


def _width(parts):
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in parts if part in widths), 4)
