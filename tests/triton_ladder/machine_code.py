"""Reads what a compiled kernel needs and does from its machine code, and what it must not do."""

import re
from collections import Counter

import triton
from nvidia_code import Usage, codes, operations, resources, usage

AMD_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2}
AMD_WAVES = 8  # a SIMD of gfx942 holds at most
# Bytes of a good access by a thread: a wavefront of 64 threads moves as many as two warps of 32.
WIDE = {"sm_80": 16, "sm_90": 16, "gfx942": 8}


def usages(kernels):
    """Return the usage of every ``aot.Compiled`` of one target."""
    if not kernels or kernels[0].target.startswith("gfx"):
        return [_amd(kernel) for kernel in kernels]
    code = [one for kernel in kernels for one in codes(kernel.asm["cubin"]).values()]
    return [_nvidia(*pair) for pair in zip(kernels, operations(code, kernels[0].target), strict=True)]


def complaints(kernel, used, wide):
    """Return what is wrong with an ``aot.Compiled`` of that usage; ``wide`` where rows allow wide loads."""
    width = WIDE[kernel.target]
    float64 = "float64" in kernel.dtypes or triton.language.float64 in kernel.constants.values()
    wrong = {
        f"{used.spills} spills": used.spills,
        f"{used.stack} bytes of stack": used.stack,
        f"{len(used.atomics)} atomic operations": used.atomics,
        f"{used.double} float64 instructions": used.double and not float64,
        "contraction is on": kernel.metadata.enable_fp_fusion,
        f"no {width}-byte load": wide and kernel.large and not any(n >= width for n in used.loads),
    }
    return [f"{kernel.name} {kernel.constants} on {kernel.target}: {what}" for what in wrong if wrong[what]]


def _nvidia(kernel, operations):
    (need,) = resources(kernel.asm["cubin"], kernel.target).values()
    return usage(kernel.target, kernel.metadata.num_warps, kernel.metadata.shared, need, operations)


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
        tuple(re.findall(r"^\s+((?:global|buffer|flat)_atomic\w*)", text, re.MULTILINE)),
    )
