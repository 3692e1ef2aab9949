"""The backward of a depthwise and a pointwise convolution for the edges of a section, in one launch.

dt, dz times the pointwise weight, exists for a few rows at a time: a program makes those that the taps of a
chunk of pixels reach, in memory of its own that is small enough to stay in the second cache, and all that
reads them follows at once. So it does with what the windows of a pool share out. What is as large as an image
is touched once: g, z, x, dx.
"""

from __future__ import annotations

import triton
import triton.language as tl
from dartsfast.kernels.branch_conv import norm_rows
from dartsfast.kernels.branch_conv import place as pixel
from dartsfast.kernels.branch_gradients import (
    depthwise_adjoint,
    depthwise_gradient,
    pointwise_adjoint,
    pointwise_gradient,
    through_source,
)
from dartsfast.kernels.grouped import given, place
from dartsfast.kernels.grouped_conv_backward import (
    GRADIENT,
    INPUT,
    arrive,
    dense,
    numbered,
    pool_base,
    through_norm_and_relu,
)
from dartsfast.kernels.images import offset, position, scaled
from dartsfast.kernels.pool3x3 import coefficients, through_norm, window_pixels, windows
from dartsfast.kernels.reduce import divide


@triton.jit
def reached(begin, end, H, W, Ho, Wo, reach, STRIDE: tl.constexpr):
    """Return first and last output pixel, whole rows, whose taps reach input pixels begin to end."""
    n, y, _ = pixel(begin, H, W)
    low = n * Ho + tl.maximum(y - reach, 0) // STRIDE
    n, y, _ = pixel(end - 1, H, W)
    high = n * Ho + tl.minimum((y + reach) // STRIDE, Ho - 1) + 1
    return low * Wo, high * Wo


@triton.jit
def make_rows(
    dt, g, g_strides, z, z_strides, coef, pitch, pointwise, low, high, Ho, Wo, c, Ci, Co,
    PRECISION: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill dt [p, c] of output pixels low to high, rows every BC numbers."""
    for start in range(low, high, BP):
        p = start + tl.arange(0, BP)
        n, y, column = pixel(p, Ho, Wo)
        here = p < high
        made = pointwise_adjoint(
            g, g_strides, z, z_strides, coef, pitch, pointwise, n, y, column, here, c, Ci, Co,
            PRECISION, BO, ACC,
        )  # fmt: skip
        tl.store(dt + p[:, None] * BC + c[None, :], made, here[:, None] & (c < Ci)[None, :])


@triton.jit
def add_products(
    partial, before, g, g_strides, z, z_strides, coef, pitch, x, x_strides, norm, norm_stride, taps, K, D,
    begin, end, H, W, Ho, Wo, c, Ci, Co, STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    BP: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Let partial [Co, Ci] be dz^T t of output pixels begin to end, on top of what is there, ``before``."""
    for start in range(0, Co, BO):
        o = start + tl.arange(0, BO)
        to, inside = partial + o[:, None] * Ci + c[None, :], (o < Co)[:, None] & (c < Ci)[None, :]
        total = pointwise_gradient(
            tl.load(to, inside & before, 0.0), g, g_strides, z, z_strides, coef, pitch, x, x_strides, norm,
            norm_stride, taps, K, D, begin, end, H, W, Ho, Wo, o, c, Ci, Co, STRIDE, RELU, PRECISION, BP, ACC,
        )  # fmt: skip
        tl.store(to, total, inside)


@triton.jit
def add_adjoint(
    sums, before, dt, taps, K, D, begin, end, H, W, Ho, Wo, c, Ci,
    STRIDE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Let sums [end - begin, BC] be a branch's depthwise adjoint, on top of what is there, ``before``."""
    for start in range(begin, end, BP):
        p = start + tl.arange(0, BP)
        n, y, column = pixel(p, H, W)
        here = p < end
        s = depthwise_adjoint(dt, BC, taps, Ho, Wo, n, y, column, here, c, Ci, K, D, STRIDE, ACC)
        to = sums + (p - begin)[:, None] * BC + tl.arange(0, BC)[None, :]
        tl.store(to, tl.load(to, here[:, None] & before, 0.0) + s, here[:, None])


@triton.jit
def add_branch(
    one, addresses, bases, halves, sums, rows, others, before, split, z_strides, pitch,
    x, x_strides, norm, norm_stride, mean, rstd, begin, end, H, W, Ho, Wo, c, Ci, Co,
    BY_INPUT: tl.constexpr, BY_WEIGHTS: tl.constexpr, SUMMED: tl.constexpr, Z_HALF: tl.constexpr,
    STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, UO: tl.constexpr, TP: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add what a chunk, pixels begin to end, gives of the branch in row ``one``, by way of rows of dt.

    Its depthwise adjoint goes to sums, on top of ``others``, if they are ``SUMMED``, and its products to
    the partial sums of a split, on top of what chunks ``before`` gave. Return dt [p, c].
    """
    g, z = place(bases, halves, one, False, UO), place(bases, halves, one + 2, Z_HALF, UO)
    g_strides = numbered(one, Ho, Wo, UO)
    coef = place(bases, halves, one + 4, False, UO)
    taps = given(addresses, one + 11, ACC)
    K, D = tl.load(one + 12).to(tl.int32), tl.load(one + 13).to(tl.int32)
    low, high = begin, end
    if BY_INPUT:
        low, high = reached(begin, end, H, W, Ho, Wo, D * (K - 1) // 2, STRIDE)
    dt = rows - low * BC - tl.program_id(1) * BC
    make_rows(
        dt, g, g_strides, z, z_strides, coef, pitch, given(addresses, one + 10, ACC),
        low, high, Ho, Wo, c, Ci, Co, PRECISION, BP, BC, BO, ACC,
    )  # fmt: skip
    tl.debug_barrier()
    if BY_INPUT and SUMMED:
        add_adjoint(sums, others, dt, taps, K, D, begin, end, H, W, Ho, Wo, c, Ci, STRIDE, TP, BC, ACC)
    if BY_WEIGHTS:
        add_products(
            place(bases, halves, one + 6, False, 1) + split * Co * Ci, before,
            g, g_strides, z, z_strides, coef, pitch, x, x_strides, norm, norm_stride,
            taps, K, D, begin, end, H, W, Ho, Wo, c, Ci, Co, STRIDE, RELU, PRECISION, BP, BO, ACC,
        )  # fmt: skip
        depthwise_gradient(
            dt, BC, x, x_strides, norm, mean, rstd,
            place(bases, halves, one + 8, False, 1) + split * Ci * (K * K), before, begin, end,
            H, W, Ho, Wo, c, Ci, K, D, STRIDE, RELU, BT, TP, ACC,
        )  # fmt: skip
    tl.debug_barrier()
    return dt


@triton.jit
def make_windows(
    shares, taps, bases, halves, at, g_strides, x_strides, low, high, H, W, Ho, Wo, c, C,
    X_HALF: tl.constexpr, STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Fill shares of the average's gradient, and taps of maxima, [p, c] of windows low to high."""
    g, x = place(bases, halves, at + 2, False, UNIT), place(bases, halves, at + 4, X_HALF, UNIT)
    of_mean = coefficients(place(bases, halves, at + 10, False, UNIT), c, C, ACC)
    for start in range(low, high, BP):
        p = start + tl.arange(0, BP)
        _, mean, tap = windows(x, x_strides, p, c, high, H, W, Ho, Wo, C, STRIDE, UNIT, ACC)
        n, y, column = position(p, Ho, Wo)
        inside = (p < high)[:, None] & (c < C)[None, :]
        d = tl.load(g + offset(g_strides, n, y, column, UNIT)[:, None] + c[None, :], inside, 0.0)
        count = window_pixels(y * STRIDE, column * STRIDE, H, W).to(ACC)[:, None]
        to = p[:, None] * BC + c[None, :]
        tl.store(shares + to, divide(through_norm(d, mean, of_mean), count), inside)
        tl.store(taps + to, tap.to(tl.int8), inside)


@triton.jit
def window_gradient(
    shares, taps, bases, halves, at, g_strides, x_strides, p, c, inside, H, W, Ho, Wo, C,
    X_HALF: tl.constexpr, STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Return a tile [BP, BC] of a pool's base + gradient of its input, as grouped_conv_backward.pooled."""
    n, y, x = position(p, H, W)
    g = place(bases, halves, at + 2, False, UNIT)
    to = offset(x_strides, n, y, x, UNIT)[:, None] + c[None, :]
    own = tl.load(place(bases, halves, at + 4, X_HALF, UNIT) + to, inside, 0.0).to(ACC)
    of_most = coefficients(place(bases, halves, at + 8, False, UNIT), c, C, ACC)
    total = tl.zeros([BP, BC], ACC)
    REACH: tl.constexpr = 3 if STRIDE == 1 else 2
    for window in range(REACH * REACH):
        wy = (y + (STRIDE - 2)) // STRIDE + window // REACH
        wx = (x + (STRIDE - 2)) // STRIDE + window % REACH
        ky, kx = y - wy * STRIDE + 1, x - wx * STRIDE + 1
        reached = (wy >= 0) & (wy < Ho) & (ky >= 0) & (wx >= 0) & (wx < Wo) & (kx >= 0)
        there = inside & reached[:, None]
        to = (((n * Ho + wy) * Wo + wx) * BC)[:, None] + c[None, :]
        d = tl.load(g + offset(g_strides, n, wy, wx, UNIT)[:, None] + c[None, :], there, 0.0)
        here = tl.load(taps + to, there, -1) == (3 * ky + kx)[:, None]
        added = tl.where(here, through_norm(d, own, of_most), 0.0) + tl.load(shares + to, there, 0.0)
        total += tl.where(there, added, 0.0)
    return pool_base(bases, halves, at, g, g_strides, n, y, x, p, c, inside, C, UNIT) + total


@triton.jit
def add_halves(
    s, halved, addresses, bases, halves, x, x_strides, z_strides, pitch, n, y, column, inside, here, Ho, Wo,
    c, Ci, Co, HALVES: tl.constexpr, Z_HALF: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    UO: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return s [BP, BC] with what factorized reductions add to pixels that they read, half by half.

    ``halved``: the row of the first half; every other one reads the image without its first row and column.
    """
    for h in tl.static_range(HALVES):
        one = halved + h * GRADIENT
        taken = here & (y % 2 == h % 2) & (column % 2 == h % 2)
        part = pointwise_adjoint(
            place(bases, halves, one, False, UO), numbered(one, Ho, Wo, UO),
            place(bases, halves, one + 2, Z_HALF, UO), z_strides, place(bases, halves, one + 4, False, UO),
            pitch, given(addresses, one + 10, ACC), n, y // 2, column // 2, taken, c, Ci, Co // 2,
            PRECISION, BO, ACC,
        )  # fmt: skip
        part = through_source(part, x, x_strides, None, 0, None, n, y, column, inside, c, Ci, True, ACC)
        s = tl.where(taken[:, None], s + part, s)
    return s


@triton.jit
def leave(
    sums, rows, dt, one, halved, addresses, bases, halves, at, x, x_strides, norm, norm_stride, z_strides,
    pitch, onto_strides, dx_strides, pool_strides, begin, end, H, W, Ho, Wo, c, Ci, Co,
    SUMMED: tl.constexpr, POOLED: tl.constexpr, HALVES: tl.constexpr, X_HALF: tl.constexpr,
    Z_HALF: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    UI: tl.constexpr, UO: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Fill dx of input pixels begin to end from what all branches gave; windows come where dt was.

    Unless ``SUMMED`` from dt of the branch in row ``one``, the only one.
    """
    shares, taps = rows, rows
    if POOLED:
        low, high = reached(begin, end, H, W, Ho, Wo, 1, STRIDE)
        first = low * BC + tl.program_id(1) * BC  # [p, c]
        shares = rows - first
        taps = (rows + (high - low) * BC).to(tl.pointer_type(tl.int8), bitcast=True) - first
        make_windows(
            shares, taps, bases, halves, at + 16, pool_strides[0], pool_strides[1], low, high, H, W, Ho, Wo,
            c, Ci, X_HALF, STRIDE, UI, BP, BC, ACC,
        )  # fmt: skip
        tl.debug_barrier()
    for start in range(begin, end, BP):
        p = start + tl.arange(0, BP)
        n, y, column = pixel(p, H, W)
        inside = (p < end)[:, None] & (c < Ci)[None, :]
        if SUMMED:
            s = tl.load(sums + (p - begin)[:, None] * BC + tl.arange(0, BC)[None, :], inside, 0.0)
        else:
            K, D = tl.load(one + 12).to(tl.int32), tl.load(one + 13).to(tl.int32)
            s = depthwise_adjoint(
                dt, BC, given(addresses, one + 11, ACC), Ho, Wo, n, y, column, p < end, c, Ci, K, D, STRIDE,
                ACC,
            )  # fmt: skip
        if POOLED:
            base = window_gradient(
                shares, taps, bases, halves, at + 16, pool_strides[0], pool_strides[1], p, c, inside,
                H, W, Ho, Wo, Ci, X_HALF, STRIDE, UI, BP, BC, ACC,
            )  # fmt: skip
        else:
            base = dense(bases, halves, at + 4, p, c, inside, Ci, UI)
        s = through_norm_and_relu(
            s, bases, halves, at, x, x_strides, norm, norm_stride, start // BP, n, y, column, inside, c, Ci,
            RELU, UI, ACC,
        )  # fmt: skip
        s = add_halves(
            base + s, halved, addresses, bases, halves, x, x_strides, z_strides, pitch, n, y, column, inside,
            p < end, Ho, Wo, c, Ci, Co, HALVES, Z_HALF, RELU, PRECISION, UO, BO, ACC,
        )  # fmt: skip
        arrive(s, bases, halves, at, onto_strides, dx_strides, n, y, column, inside, c, UI)
    if POOLED or not SUMMED:
        tl.debug_barrier()  # what comes next lies where windows or dt were


@triton.jit(do_not_specialize=["start", "branches", "inputs", "splits", "span", "Ci", "Co"])
def grouped_stage_backward_kernel(
    table, addresses, bases, halves, start, branches, inputs, splits, span, room, pixels,
    z_strides, coef_row, x_strides, norm_stride, onto_strides, dx_strides, pool_strides,
    H, W, Ho, Wo, Ci, Co,
    BY_INPUT: tl.constexpr, BY_WEIGHTS: tl.constexpr, SUMMED: tl.constexpr, POOLED: tl.constexpr,
    HALVES: tl.constexpr, NORMED: tl.constexpr, X_HALF: tl.constexpr, Z_HALF: tl.constexpr,
    STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, UI: tl.constexpr, UO: tl.constexpr,
    CHUNK: tl.constexpr, TP: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill dx of every input, and partial [splits, Co, Ci] and [splits, Ci, K * K] of its branches.

    What is asked for of them; both only with stride 1. Grid (programs * inputs, blocks of Ci): a program
    takes every programs-th split of ``span`` pixels, of the input for dx, else of the output, and of that a
    chunk at a time. Its own memory, ``room`` times 16 numbers, holds what branches have given until now for
    the chunk, [CHUNK, BC], then rows of dt [rows * Wo, BC], after all branches of what windows share out.
    Unless ``SUMMED`` it holds rows of dt alone: every input has one branch and no pool, or there is no dx.
    With norm also partial [tiles, 2, Ci], as :func:`grouped_input_gradient_kernel`. ``POOLED``: base is the
    gradient of a pool of the same input, whose g and x have ``pool_strides``. ``HALVES``: of factorized
    reductions of every input, whose rows come before those of branches, input by input.
    """
    Ci, Co, z_strides = Ci * UI, Co * UO, scaled(z_strides, UO)
    x_strides, norm_stride = scaled(x_strides, UI), norm_stride * UI
    onto_strides, dx_strides = scaled(onto_strides, UI), scaled(dx_strides, UI)
    at = table + start + tl.program_id(0) % inputs * INPUT
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    number = tl.program_id(0) // inputs
    sums = place(bases, halves, at + 14, False, 16)
    sums += (number * tl.num_programs(1) + tl.program_id(1)) * room * 16
    rows = sums + CHUNK * BC if SUMMED else sums
    x, norm = place(bases, halves, at, X_HALF, UI), None
    if NORMED:
        norm = place(bases, halves, at + 2, False, UI)
    mean, rstd = norm_rows(norm, c, Ci, norm_stride, ACC)
    halved = table + start + branches + tl.program_id(0) % inputs * HALVES * GRADIENT
    first = table + start + branches + tl.load(at + 12) * GRADIENT
    for split in range(number, splits, tl.num_programs(0) // inputs):
        stop = tl.minimum(split * span + span, pixels)
        for begin in range(split * span, stop, CHUNK):
            end = tl.minimum(begin + CHUNK, stop)
            before = begin > split * span  # whether partial sums hold something
            dt = rows
            for b in range(tl.load(at + 13).to(tl.int32)):
                dt = add_branch(
                    first + b * GRADIENT, addresses, bases, halves, sums, rows, b > 0, before, split,
                    z_strides, coef_row * UO, x, x_strides, norm, norm_stride, mean, rstd, begin, end,
                    H, W, Ho, Wo, c, Ci, Co, BY_INPUT, BY_WEIGHTS, SUMMED, Z_HALF, STRIDE, RELU, PRECISION,
                    UO, TP, BT, BP, BC, BO, ACC,
                )  # fmt: skip
            if BY_INPUT:
                leave(
                    sums, rows, dt, first, halved, addresses, bases, halves, at, x, x_strides, norm,
                    norm_stride, z_strides, coef_row * UO, onto_strides, dx_strides, pool_strides, begin, end,
                    H, W, Ho, Wo, c, Ci, Co, SUMMED, POOLED, HALVES, X_HALF, Z_HALF, STRIDE, RELU, PRECISION,
                    UI, UO, TP, BC, BO, ACC,
                )  # fmt: skip
