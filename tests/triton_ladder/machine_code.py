"""Reads what a compiled kernel needs and does from its machine code, and what it must not do."""

import itertools
import re
import struct
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
from occupancy import occupancy

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")
ATOMICS = {"ATOM", "ATOMG", "RED"}
DOUBLE = {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX"}
AMD_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2}
AMD_WAVES = 8  # a SIMD of gfx942 holds at most
# Bytes of a good access by a thread: a wavefront of 64 threads moves as many as two warps of 32.
WIDE = {"sm_80": 16, "sm_90": 16, "gfx942": 8}


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
    atomics: int

    @property
    def narrow(self):
        """Accesses to global memory of less than 16 bytes."""
        return sum(n for width, n in (*self.loads.items(), *self.stores.items()) if width < 16)


def usages(kernels):
    """Return the usage of every ``aot.Compiled`` of one target."""
    if not kernels or kernels[0].target.startswith("gfx"):
        return [_amd(kernel) for kernel in kernels]
    pairs = zip(kernels, _disassembled(kernels), strict=True)
    return [_nvidia(kernel, operations) for kernel, operations in pairs]


def complaints(kernel, used, wide):
    """Return what is wrong with an ``aot.Compiled`` of that usage; ``wide`` where rows allow wide loads."""
    width = WIDE[kernel.target]
    float64 = "float64" in kernel.dtypes or triton.language.float64 in kernel.constants.values()
    wrong = {
        f"{used.spills} spills": used.spills,
        f"{used.stack} bytes of stack": used.stack,
        f"{used.atomics} atomic operations": used.atomics,
        f"{used.double} float64 instructions": used.double and not float64,
        "contraction is on": kernel.metadata.enable_fp_fusion,
        f"no {width}-byte load": wide and kernel.large and not any(n >= width for n in used.loads),
    }
    return [f"{kernel.name} {kernel.constants} on {kernel.target}: {what}" for what in wrong if wrong[what]]


def _disassembled(kernels):
    """Return the operations of NVIDIA kernels of one target, such as ``LDG.E.128``, as lists.

    The disassembler takes half a second to start: it gets the code of all in one file.
    """
    codes = [_code(kernel.asm["cubin"]) for kernel in kernels]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        target = kernels[0].target.upper().replace("_", "")
        command = [TOOLS / "nvdisasm", "--binary", target, "--no-dataflow", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ends = list(itertools.accumulate(len(code) for code in codes))
    lists = [[] for _ in kernels]
    place = 0
    for address, operation in SASS.findall(text):
        while int(address, 16) >= ends[place]:
            place += 1
        lists[place].append(operation)
    return lists


def _code(cubin):
    """Return the machine code in a cubin, an ELF file of 64 bits with one kernel."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    names = sections[names][4]
    (code,) = (s for s in sections if cubin[names + s[0] :].startswith(b".text."))
    return cubin[code[4] : code[4] + code[5]]


def _resources(cubin):
    """Return registers, stack and local memory of a thread, by cuobjdump's names."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def _nvidia(kernel, operations):
    resources, shared = _resources(kernel.asm["cubin"]), kernel.metadata.shared
    assert "EXIT" in operations and "REG" in resources, kernel.name
    operations = [operation.split(".") for operation in operations]
    kinds = Counter(first for first, *_ in operations)
    double = sum(
        first in DOUBLE or any(part in ("F64", "RCP64H", "RSQ64H") for part in rest)
        for first, *rest in operations
    )
    return Usage(
        resources["REG"],
        shared,
        occupancy(kernel.target, kernel.metadata.num_warps, resources["REG"], shared),
        resources["STACK"] + resources["LOCAL"],
        kinds["LDL"] + kinds["STL"],
        Counter(_width(rest) for first, *rest in operations if first in ("LDG", "LDGSTS")),
        Counter(_width(rest) for first, *rest in operations if first == "STG"),
        double,
        sum(kinds[name] for name in ATOMICS),
    )


def _width(parts):
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in parts if part in widths), 4)


def _amd(kernel):
    text = kernel.asm["amdgcn"]
    numbers = {name: int(n) for name, n in re.findall(r"^\s+\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    waves = int(re.search(r"; Occupancy: (\d+)", text)[1])
    access = r"^\s+(?:global|buffer|flat)_{}_(\w+?)(?:_d16\w*)?\s"
    loads, stores = (
        Counter(AMD_WIDTHS.get(width, 1) for width in re.findall(access.format(way), text, re.MULTILINE))
        for way in ("load", "store")
    )
    return Usage(
        numbers["vgpr_count"],
        kernel.metadata.shared,
        waves / AMD_WAVES,
        numbers["private_segment_fixed_size"],
        numbers["vgpr_spill_count"],  # scalar registers spill to vector registers, or else to the stack
        loads,
        stores,
        len(re.findall(r"^\s+v_\w*f64", text, re.MULTILINE)),
        len(re.findall(r"^\s+(?:global|buffer|flat)_atomic", text, re.MULTILINE)),
    )
