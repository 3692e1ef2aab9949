"""How many warps of a kernel an NVIDIA multiprocessor holds at a time.

Limits of compute capability 8.0 and 9.0: CUDA C++ Programming Guide, technical specifications; allocation
units: CUDA's ``cuda_occupancy.h``.
"""

WARPS, BLOCKS, REGISTERS = 64, 32, 65536
REGISTER_UNIT = 256  # registers of a warp are allocated in such units
SHARED_UNIT = 128
RESERVED = 1024  # bytes of shared memory that a block loses to the system
PARTITIONS = 4  # of a multiprocessor: a warp's registers lie in one
SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10}


def resident_blocks(target, warps, registers, shared):
    """Return how many blocks of ``warps`` warps fit, given a thread's registers and a block's bytes."""
    of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps
    of_block = -(-(shared + RESERVED) // SHARED_UNIT) * SHARED_UNIT
    return min(BLOCKS, WARPS // warps, by_registers, SHARED[target] // of_block)


def occupancy(target, warps, registers, shared):
    """Return the share of a multiprocessor's warps that a kernel can fill, 0 to 1."""
    return resident_blocks(target, warps, registers, shared) * warps / WARPS
