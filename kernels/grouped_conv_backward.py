"""The backward of convolutions without taps and of pools for the edges of a section, and weights' sums."""

from __future__ import annotations

import triton
import triton.language as tl
from dartsfast.kernels.branch_conv import place as pixel
from dartsfast.kernels.branch_gradients import pointwise_adjoint, pointwise_gradient, through_source
from dartsfast.kernels.grouped import given, place, there
from dartsfast.kernels.images import offset, position, scaled
from dartsfast.kernels.pool3x3 import coefficients, pool_gradient
from dartsfast.kernels.reduce import added

GRADIENT = tl.constexpr(16)
"""Entries of a branch's row: g, z, coef, partial of the pointwise and of the depthwise weight, pointwise,
depthwise, K, D, its input, the pitch of g."""
INPUT = tl.constexpr(32)
"""Entries of an input's row: x, norm, base, onto, dx, partial, first branch, branches, memory of programs,
and those of a pool's that stands for base, but dx."""
POOL = tl.constexpr(18)
"""Entries of a pool's row: place, g, x, average, coef of both halves, base, weight of g, dx."""
WEIGHT = tl.constexpr(6)
"""Entries of a weight's row: partial, out, size in units, parts."""


@triton.jit
def pooled(
    bases, halves, at, g_strides, x_strides, p, c, inside, H, W, Ho, Wo, C, X_HALF: tl.constexpr,
    STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return a tile [BP, BC] of a pool's base + gradient of its input; ``at``: its row."""
    n, y, x = position(p, H, W)
    places = place(bases, halves, at, False, UNIT).to(tl.pointer_type(tl.int8), bitcast=True)
    g = place(bases, halves, at + 2, False, UNIT)
    to = offset(x_strides, n, y, x, UNIT)[:, None] + c[None, :]
    own = tl.load(place(bases, halves, at + 4, X_HALF, UNIT) + to, inside, 0.0).to(ACC)
    mean, pitch = place(bases, halves, at + 6, False, UNIT), C // UNIT
    z_strides = Ho * Wo * pitch, Wo * pitch, pitch
    of_most = coefficients(place(bases, halves, at + 8, False, UNIT), c, C, ACC)
    of_mean = coefficients(place(bases, halves, at + 10, False, UNIT), c, C, ACC)
    total = pool_gradient(
        places, (g, g), (None, mean), own, of_most, of_mean, (g_strides, g_strides), (None, z_strides),
        n, y, x, c, inside, H, W, Ho, Wo, C, STRIDE, UNIT, BP, BC, ACC,
    )  # fmt: skip
    return pool_base(bases, halves, at, g, g_strides, n, y, x, p, c, inside, C, UNIT) + total


@triton.jit
def pool_base(bases, halves, at, g, g_strides, n, y, x, p, c, inside, C, UNIT: tl.constexpr):
    """Return a tile [BP, BC] of what a pool's gradient is added to; ``at``: its row."""
    base = place(bases, halves, at + 12, False, UNIT)
    to = (p * C)[:, None] + c[None, :]
    before = tl.load(base + to, inside & there(at + 12), 0.0)
    if there(at + 14):  # the source itself, weighted: strides are 1 then, and base is not there
        weight = tl.load(place(bases, halves, at + 14, False, 1))
        to_g = offset(g_strides, n, y, x, UNIT)[:, None] + c[None, :]
        before = tl.fma(weight, tl.load(g + to_g, inside, 0.0), before)
    return before


@triton.jit
def dense(bases, halves, at, p, c, inside, Ci, UI: tl.constexpr):
    """Return a tile [BP, BC] of a dense image, 0 where it is not there."""
    image = place(bases, halves, at, False, UI)
    return tl.load(image + p[:, None] * Ci + c[None, :], inside & there(at), 0.0)


@triton.jit
def numbered(one, Ho, Wo, UO: tl.constexpr):
    """Return the strides of g of a branch's row, whose pixels are numbered through."""
    pitch = tl.load(one + 15).to(tl.int32) * UO
    return Ho * Wo * pitch, Wo * pitch, pitch


@triton.jit
def through_norm_and_relu(
    s, bases, halves, at, x, x_strides, norm, norm_stride, tile, n, y, column, inside, c, Ci,
    RELU: tl.constexpr, UI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return what relu leaves of s [BP, BC], and fill an input's partial if it has a norm."""
    if RELU or norm is not None:
        partial = None
        if norm is not None:
            partial = place(bases, halves, at + 10, False, UI) + tile * 2 * Ci
        s = through_source(
            s, x, x_strides, norm, norm_stride, partial, n, y, column, inside, c, Ci, RELU, ACC
        )
    return s


@triton.jit
def arrive(s, bases, halves, at, onto_strides, dx_strides, n, y, column, inside, c, UI: tl.constexpr):
    """Fill a tile of an input's dx = onto + s [BP, BC]."""
    to = (n * onto_strides[0] + y * onto_strides[1] + column * onto_strides[2])[:, None] + c[None, :]
    s = tl.load(place(bases, halves, at + 6, False, UI) + to, inside & there(at + 6), 0.0) + s
    to = (n * dx_strides[0] + y * dx_strides[1] + column * dx_strides[2])[:, None] + c[None, :]
    tl.store(place(bases, halves, at + 8, False, UI) + to, s, inside)


@triton.jit(do_not_specialize=["start", "branches", "Ci", "Co"])
def grouped_input_gradient_kernel(
    table, addresses, bases, halves, start, branches, z_strides, coef_row, x_strides, norm_stride,
    onto_strides, dx_strides, pixels, H, W, Ho, Wo, Ci, Co,
    IN_PLACE: tl.constexpr, NORMED: tl.constexpr, X_HALF: tl.constexpr, Z_HALF: tl.constexpr,
    STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, UI: tl.constexpr, UO: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill dx = onto + (base + gradient of x) of every input; grid (tiles, blocks of Ci, inputs).

    With norm also partial [tiles, 2, Ci]: the sums of s and of s * norm(x). ``branches`` is the number of the
    first branch's first entry, from ``start`` on; base is dense. ``IN_PLACE``: dx is onto, there is no base,
    and pixels that a stride skips stay as they are.
    """
    Ci, Co, z_strides = Ci * UI, Co * UO, scaled(z_strides, UO)
    x_strides, norm_stride = scaled(x_strides, UI), norm_stride * UI
    onto_strides, dx_strides = scaled(onto_strides, UI), scaled(dx_strides, UI)
    at = table + start + tl.program_id(2) * INPUT
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = p < pixels
    n, y, column = pixel(p, H, W)
    s = tl.zeros([BP, BC], ACC)
    first = table + start + branches + tl.load(at + 12) * GRADIENT
    for b in range(tl.load(at + 13).to(tl.int32)):
        one = first + b * GRADIENT
        taken = here & (y % STRIDE == 0) & (column % STRIDE == 0)
        part = pointwise_adjoint(
            place(bases, halves, one, False, UO), numbered(one, Ho, Wo, UO),
            place(bases, halves, one + 2, Z_HALF, UO), z_strides,
            place(bases, halves, one + 4, False, UO), coef_row * UO, given(addresses, one + 10, ACC),
            n, y // STRIDE, column // STRIDE, taken, c, Ci, Co, PRECISION, BO, ACC,
        )  # fmt: skip
        if STRIDE > 1:  # a weight that is not finite has no part in pixels that a stride skips
            part = tl.where(taken[:, None], part, 0.0)
        s += part
    norm = None
    if NORMED:
        norm = place(bases, halves, at + 2, False, UI)
    if IN_PLACE:
        here &= (y % STRIDE == 0) & (column % STRIDE == 0)
    inside = here[:, None] & (c < Ci)[None, :]
    s = through_norm_and_relu(
        s, bases, halves, at, place(bases, halves, at, X_HALF, UI), x_strides, norm, norm_stride,
        tl.program_id(0), n, y, column, inside, c, Ci, RELU, UI, ACC,
    )  # fmt: skip
    s = dense(bases, halves, at + 4, p, c, inside, Ci, UI) + s
    arrive(s, bases, halves, at, onto_strides, dx_strides, n, y, column, inside, c, UI)


@triton.jit(do_not_specialize=["start", "inputs", "branches"])
def grouped_pointwise_gradient_kernel(
    table, addresses, bases, halves, start, inputs, branches, z_strides, coef_row, x_strides,
    norm_stride, pixels, span, H, W, Ho, Wo, Ci, Co,
    NORMED: tl.constexpr, X_HALF: tl.constexpr, Z_HALF: tl.constexpr,
    STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, UI: tl.constexpr, UO: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill partial [splits, Co, Ci] of every branch: dz^T t of ``span`` pixels a split.

    Grid (splits * branches, blocks of Co, blocks of Ci); ``inputs`` is the number of the first input's first
    entry, from ``start`` on.
    """
    Ci, Co, z_strides = Ci * UI, Co * UO, scaled(z_strides, UO)
    x_strides, norm_stride = scaled(x_strides, UI), norm_stride * UI
    at = table + start + tl.program_id(0) % branches * GRADIENT
    source = table + start + inputs + tl.load(at + 14) * INPUT
    split = tl.program_id(0) // branches
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    norm = None
    if NORMED:
        norm = place(bases, halves, source + 2, False, UI)
    total = pointwise_gradient(
        tl.zeros([BO, BC], ACC), place(bases, halves, at, False, UO), numbered(at, Ho, Wo, UO),
        place(bases, halves, at + 2, Z_HALF, UO), z_strides, place(bases, halves, at + 4, False, UO),
        coef_row * UO, place(bases, halves, source, X_HALF, UI), x_strides, norm, norm_stride, None, 1, 1,
        split * span, tl.minimum(split * span + span, pixels), H, W, Ho, Wo, o, c, Ci, Co,
        STRIDE, RELU, PRECISION, BP, ACC,
    )  # fmt: skip
    to = place(bases, halves, at + 6, False, 1) + (split * Co + o[:, None]) * Ci + c[None, :]
    tl.store(to, total, (o < Co)[:, None] & (c < Ci)[None, :])


@triton.jit(do_not_specialize=["start"])
def grouped_weight_sums_kernel(
    table, addresses, bases, halves, start, UNIT: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add every partial [parts, size] over its parts; grid (blocks of the largest, weights)."""
    at = table + start + tl.program_id(1) * WEIGHT
    size, parts = tl.load(at + 4).to(tl.int32) * UNIT, tl.load(at + 5).to(tl.int32)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = added(place(bases, halves, at, False, UNIT), size, parts, c, size, PARTS, COLUMNS, ACC)
    tl.store(place(bases, halves, at + 2, False, UNIT) + c, total, c < size)


@triton.jit(do_not_specialize=["start"])
def grouped_pool_gradient_kernel(
    table, addresses, bases, halves, start, g_strides, x_strides, pixels, H, W, Ho, Wo, units,
    X_HALF: tl.constexpr, STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Fill dx of every image on top of base, dense both; grid (tiles, blocks of C, images)."""
    C = units * UNIT
    at = table + start + tl.program_id(2) * POOL
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    dx = pooled(
        bases, halves, at, g_strides, x_strides, p, c, inside, H, W, Ho, Wo, C, X_HALF, STRIDE, UNIT, BP, BC,
        ACC,
    )  # fmt: skip
    tl.store(place(bases, halves, at + 16, False, UNIT) + (p * C)[:, None] + c[None, :], dx, inside)
