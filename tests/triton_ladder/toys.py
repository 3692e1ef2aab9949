"""Small kernels, one right and the others each with one planted mistake."""

import triton
import triton.language as tl


@triton.jit
def double_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, 2 * tl.load(x + at, at < n), at < n)


@triton.jit
def missing_store_mask_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < n, 0.0))


@triton.jit
def missing_load_mask_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at), at < n)


@triton.jit
def neighbour_kernel(x, out, n, BLOCK: tl.constexpr):
    """From x it goes on into ``out``, which the launch got too."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + n + at, tl.load(x + at, at < n, 0.0), at < n)


@triton.jit
def same_place_kernel(x, out, n, BLOCK: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, BLOCK))) + tl.program_id(0))


@triton.jit
def accumulating_kernel(x, out, n, BLOCK: tl.constexpr):
    """Adds to what other programs added, in whatever order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out, tl.load(out) + tl.sum(tl.load(x + at, at < n, 0.0)))


@triton.jit
def shift_in_place_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at + 1, at + 1 < n, 0.0), at < n)


@triton.jit
def atomic_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out, tl.sum(tl.load(x + at, at < n, 0.0)))


@triton.jit
def unwritten_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < n, 0.0), at < n - 1)


@triton.jit
def reads_output_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(out + at, at < n, 0.0) + tl.load(x + at, at < n, 0.0), at < n)


@triton.jit
def no_barrier_kernel(x, out, n, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Reverses a block through memory: a thread reads what another stored."""
    lane = tl.arange(0, BLOCK)
    at, back = tl.program_id(0) * BLOCK + lane, tl.program_id(0) * BLOCK + BLOCK - 1 - lane
    tl.store(out + at, tl.load(x + at, at < n, 0.0), at < n)
    if BARRIER:
        tl.debug_barrier()
    turned = tl.load(out + back, back < n, 0.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + at, turned, at < n)


@triton.jit
def two_values_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at // 2, tl.load(x + at, at < n, 0.0), at < n)


@triton.jit
def masked_read_kernel(x, out, n, BLOCK: tl.constexpr):
    """Counts on 0 where the mask is off."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0), tl.sum(tl.load(x + at, at < n)))


@triton.jit
def previous_kernel(x, out, scratch, n, BLOCK: tl.constexpr):
    """Each program leaves a total for the next, which some order of programs would find."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(scratch + tl.program_id(0))
    tl.store(scratch + tl.program_id(0) + 1, before + tl.sum(tl.load(x + at, at < n, 0.0)))
    tl.store(out + tl.program_id(0), before)


@triton.jit
def fma_kernel(a, b, c, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.fma(tl.load(a + at), tl.load(b + at), tl.load(c + at)))


@triton.jit
def cast_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


@triton.jit
def heavy_kernel(x, out, n, TILE: tl.constexpr):
    """Holds more numbers than there are registers."""
    at = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    a, b = tl.load(x + at), tl.load(x + n + at)
    total = tl.zeros([TILE, TILE], tl.float32)
    for _ in range(n):
        total += tl.dot(a, b, input_precision="ieee") * b + a
        a, b = b + total, a - total
    tl.store(out + at, total + a + b)


@triton.jit
def wide_kernel(x, out, n, BLOCK: tl.constexpr):
    """Computes in float64 by mistake."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    factor = n.to(tl.float64) / 3
    tl.store(out + at, (tl.load(x + at, at < n, 0.0) * factor).to(tl.float32), at < n)
