"""``fd_hvp``: one pass over flat vectors each, their scalars read from the device.

The norm holds no float64 for float32 vectors. A program scales by a power of two that makes the largest
of its elements about 1, so that no square overflows or vanishes, and adds squares as pairs (sum, what
its rounding lost): Dekker 1971, Ogita, Rump and Oishi 2005.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dartsfast.kernels.arithmetic import argument, number, root
from dartsfast.kernels.launch import accumulator, launch
from dartsfast.kernels.reduce import divide
from torch import Tensor

BLOCK = 1024
"""Elements of a program: two loads of 16 bytes a thread and float32 vector."""
LANES = 512
"""Pairs that a program of the norm adds to, for float32; for others as many as 16 bytes a thread hold."""
STEPS = 16
"""Elements that the norm adds to each of them."""
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _load(vector, i, n, full, ACC: tl.constexpr):
    """Return vector[i], 0 from n on; ``full``: all are below n, which spares a mask and keeps loads wide."""
    x = tl.load(vector + i) if full else tl.load(vector + i, i < n, 0.0)
    return x.to(ACC)


@triton.jit
def _store(vector, i, n, full, x):
    x = x.to(vector.dtype.element_ty)
    if full:
        tl.store(vector + i, x)
    else:
        tl.store(vector + i, x, i < n)


@triton.jit
def _add(high, low, other_high, other_low):
    """Return the sum of two pairs, each a sum and what rounding lost of it (Knuth's TwoSum)."""
    total = high + other_high
    part = total - high
    lost = (high - (total - part)) + (other_high - part)
    return total, (low + other_low) + lost


@triton.jit
def _scale(largest):
    """Return a power of two that makes ``largest`` from 1 to 4, or next to nothing, and its inverse."""
    if largest.dtype == tl.float64:
        exponent = tl.minimum(tl.maximum(largest.to(tl.int64, bitcast=True) >> 52, 1), 2045)
        power = (exponent << 52).to(tl.float64, bitcast=True)
        inverse = ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 1), 253)
        power = (exponent << 23).to(tl.float32, bitcast=True)
        inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return power, inverse


@triton.jit
def fd_norm_kernel(partial, v, n, LANES: tl.constexpr, STEPS: tl.constexpr, ACC: tl.constexpr):
    """Store partial [programs, 3]: high and low part of the sum of squares of v / scale, and scale.

    An element that is not finite makes the high part what the norm is then, inf or NaN.
    """
    first = tl.program_id(0) * LANES * STEPS
    full = n - first >= LANES * STEPS
    largest = tl.zeros([LANES], ACC)
    wild = tl.zeros([LANES], ACC)
    for step in range(STEPS):
        x = tl.abs(_load(v, first + step * LANES + tl.arange(0, LANES), n, full, ACC))
        finite = x < INFINITY
        largest = tl.maximum(largest, tl.where(finite, x, 0.0))
        wild += tl.where(finite, 0.0, x)
    scale, inverse = _scale(tl.max(largest, 0))
    high = tl.zeros([LANES], ACC)
    low = tl.zeros([LANES], ACC)
    for step in range(STEPS):
        x = tl.abs(_load(v, first + step * LANES + tl.arange(0, LANES), n, full, ACC))
        x = tl.where(x < INFINITY, x, 0.0) * inverse
        square = x * x
        high, low = _add(high, low, square, tl.fma(x, x, -square))
    high, low = tl.reduce((high, low), 0, _add)
    row = partial + tl.program_id(0) * 3
    tl.store(row, high + tl.sum(wild, 0))
    tl.store(row + 1, low)
    tl.store(row + 2, scale)


@triton.jit
def fd_norm_join_kernel(out, partial, parts, LANES: tl.constexpr, ACC: tl.constexpr):
    """Store the norm, out [], from partial [parts, 3]."""
    largest = tl.zeros([LANES], ACC)
    wild = tl.zeros([LANES], ACC)
    for start in range(0, parts, LANES):
        i = start + tl.arange(0, LANES)
        high = tl.load(partial + i * 3, i < parts, 0.0)
        wild += tl.where(high < INFINITY, 0.0, high)
        largest = tl.maximum(largest, tl.load(partial + i * 3 + 2, i < parts, 0.0))
    scale, inverse = _scale(tl.max(largest, 0))
    high = tl.zeros([LANES], ACC)
    low = tl.zeros([LANES], ACC)
    for start in range(0, parts, LANES):
        i = start + tl.arange(0, LANES)
        part = tl.load(partial + i * 3, i < parts, 0.0)
        ratio = tl.load(partial + i * 3 + 2, i < parts, 0.0) * inverse
        share = tl.where(part < INFINITY, ratio * ratio, 0.0)
        part = tl.where(part < INFINITY, part, 0.0)
        high, low = _add(high, low, part * share, tl.load(partial + i * 3 + 1, i < parts, 0.0) * share)
    high, low = tl.reduce((high, low), 0, _add)
    # A step of Newton's on what the root's rounding lost, and what the sum's.
    norm = root(high)
    norm += tl.where(high > 0, divide(tl.fma(-norm, norm, high) + low, norm + norm), 0.0)
    tl.store(out, (norm * scale + tl.sum(wild, 0)).to(out.dtype.element_ty))


@triton.jit
def fd_perturb_kernel(w, w0, v, norm, n, r, sign, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Set w [n] to fma(sign * (r / norm), v, w0), or w0 where r / norm is 0 or not finite."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    full = n - tl.program_id(0) * BLOCK >= BLOCK
    step = divide(number(r, ACC), tl.load(norm).to(ACC))
    moves = (tl.abs(step) < INFINITY) & (step != 0)
    origin = _load(w0, i, n, full, ACC)
    to = tl.fma(number(sign, ACC) * step, _load(v, i, n, full, ACC), origin)
    _store(w, i, n, full, tl.where(moves, to, origin))


@triton.jit
def fd_virtual_step_kernel(
    w, g, momentum_buffer, scale, n, lr, momentum, weight_decay, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """Move w [n] by a step of SGD on scale * g."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    full = n - tl.program_id(0) * BLOCK >= BLOCK
    x = _load(w, i, n, full, ACC)
    step = tl.fma(number(weight_decay, ACC), x, tl.load(scale).to(ACC) * _load(g, i, n, full, ACC))
    if momentum_buffer is not None:
        step = tl.fma(number(momentum, ACC), _load(momentum_buffer, i, n, full, ACC), step)
    _store(w, i, n, full, tl.fma(-number(lr, ACC), step, x))


@triton.jit
def fd_quotient_kernel(out, plus, minus, norm, n, r, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Store (plus - minus) / (2 * (r / norm)), out [n]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    full = n - tl.program_id(0) * BLOCK >= BLOCK
    width = 2.0 * divide(number(r, ACC), tl.load(norm).to(ACC))
    change = _load(plus, i, n, full, ACC) - _load(minus, i, n, full, ACC)
    _store(out, i, n, full, divide(change, tl.full([BLOCK], width, ACC)))


def fd_norm(out: Tensor, v: Tensor) -> None:
    """Fill the L2 norm [] of v [n]."""
    ACC = accumulator(v)
    lanes = LANES * 4 // v.element_size()
    programs = triton.cdiv(len(v), lanes * STEPS)
    partial = v.new_empty([programs, 3], dtype=torch.promote_types(v.dtype, torch.float32))
    launch(fd_norm_kernel, (programs,), partial, v, len(v), LANES=lanes, STEPS=STEPS, ACC=ACC)
    launch(fd_norm_join_kernel, (1,), out, partial, programs, LANES=LANES, ACC=ACC)


def _elementwise(kernel: object, vector: Tensor, *args: object) -> None:
    launch(kernel, (triton.cdiv(len(vector), BLOCK),), *args, BLOCK=BLOCK, ACC=accumulator(vector))


def fd_perturb_(out: None, w: Tensor, w0: Tensor, v: Tensor, norm: Tensor, r: float, sign: float) -> None:
    """Set w [n] to a point at the distance r from w0 [n], along v [n] of length ``norm`` []."""
    _elementwise(fd_perturb_kernel, w, w, w0, v, norm, len(w), argument(r, w), argument(sign, w))


def fd_virtual_step_(
    out: None,
    w: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    scale: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Move w [n] by a step of SGD on scale [] * g [n] with momentum_buffer [n]."""
    numbers = argument(lr, w), argument(momentum, w), argument(weight_decay, w)
    _elementwise(fd_virtual_step_kernel, w, w, g, momentum_buffer, scale, len(w), *numbers)


def fd_quotient(out: Tensor, plus: Tensor, minus: Tensor, norm: Tensor, r: float) -> None:
    """Fill the central difference [n] of gradients plus and minus [n], 2 r / norm [] apart."""
    _elementwise(fd_quotient_kernel, out, out, plus, minus, norm, len(out), argument(r, out))
