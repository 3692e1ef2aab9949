"""``mixed_sum``, its backward and the sums that belong to it, for the nodes and edges of a section."""

from __future__ import annotations

import triton
import triton.language as tl
from dartsfast.kernels.grouped import loaded, place, there
from dartsfast.kernels.pool3x3 import windows
from dartsfast.kernels.reduce import added, divide

SUM = tl.constexpr(10)
"""Entries of a row of :func:`grouped_sum_kernel`: out, its pitch, base, its pitch, first branch, branches,
out in half precision, dense."""
BRANCH = tl.constexpr(16)
"""Entries of a branch's row: z, its pitch, norm, weight, kind. Of a maximum, kind 1, or average, kind 2, of
windows z is the image that they are of; its strides, its rows and columns, those of windows, and their stride
follow."""
SUMS = tl.constexpr(12)
"""Entries of a row of :func:`grouped_sum_backward_kernel`: g, its pitch, partial, its pitch, whether it has
the sum of g, number of the first branch in partial, first branch, branches, number of one that is of windows
from 0 on, else -1; all that are have the same."""
MEANS = tl.constexpr(18)
"""Entries of a row of :func:`grouped_means_kernel`: the sums of g and of g * zhat by parts, their pitch,
parts, divisor, norm, weight, own, coef, d_weight, row of coef."""
ADD = tl.constexpr(8)
"""Entries of a row of :func:`grouped_add_kernel`: a, its pitch, b, out."""
COPY = tl.constexpr(6)
"""Entries of a row of :func:`grouped_copy_kernel`: x, its pitch, out, its pitch."""


@triton.jit
def pools(
    bases, halves, at, p, c, pixels, C, X_HALF: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Return maximum and average [BP, BC] of the windows of pixels of a branch's row."""
    strides = tl.load(at + 8).to(tl.int32), tl.load(at + 9).to(tl.int32), tl.load(at + 10).to(tl.int32)
    most, mean, _ = windows(
        place(bases, halves, at, X_HALF, UNIT), strides, p, c, pixels,
        tl.load(at + 11).to(tl.int32), tl.load(at + 12).to(tl.int32), tl.load(at + 13).to(tl.int32),
        tl.load(at + 14).to(tl.int32), C, tl.load(at + 15).to(tl.int32), UNIT, ACC,
    )  # fmt: skip
    return most, mean


@triton.jit(do_not_specialize=["start", "branches"])
def grouped_sum_kernel(
    table, addresses, bases, halves, start, branches, pixels, units, POOLED: tl.constexpr,
    X_HALF: tl.constexpr, HALVED: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill a tile [BP, BC] of every out: from base, or 0, its branches ascending; grid (tiles, C, rows).

    ``branches`` is the number of the first branch's first entry, from ``start`` on.
    """
    C = units * UNIT
    at = table + start + tl.program_id(2) * SUM
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    offsets = (p * (tl.load(at + 5).to(tl.int32) * UNIT))[:, None] + c[None, :]
    acc = tl.load(place(bases, halves, at + 3, False, UNIT) + offsets, inside & there(at + 3), 0.0).to(ACC)
    first = table + start + branches + tl.load(at + 6) * BRANCH
    for b in range(tl.load(at + 7).to(tl.int32)):
        one = first + b * BRANCH
        kind = tl.load(one + 7)
        if POOLED and kind > 0:
            most, mean = pools(bases, halves, one, p, c, pixels, C, X_HALF, UNIT, ACC)
            v = tl.where(kind == 1, most, mean)
        else:
            offsets = (p * (tl.load(one + 2).to(tl.int32) * UNIT))[:, None] + c[None, :]
            v = loaded(bases, halves, one, offsets, inside, UNIT, ACC)
        norm = place(bases, halves, one + 3, False, UNIT)
        mu = tl.load(norm + c, c < C, 0.0)
        r = tl.load(norm + C + c, c < C, 0.0)
        w = tl.load(place(bases, halves, one + 5, False, 1))
        acc = tl.fma(w, (v - mu[None, :]) * r[None, :], acc)
    offsets = (p * (tl.load(at + 2).to(tl.int32) * UNIT))[:, None] + c[None, :]
    tl.store(place(bases, halves, at, False, UNIT) + offsets, acc, inside & there(at))
    if HALVED:
        half = place(bases, halves, at + 8, True, UNIT)
        offsets = (p * C)[:, None] + c[None, :]
        tl.store(half + offsets, acc.to(half.dtype.element_ty), inside & there(at + 8))


@triton.jit(do_not_specialize=["start", "branches"])
def grouped_sum_backward_kernel(
    table, addresses, bases, halves, start, branches, pixels, units, POOLED: tl.constexpr,
    X_HALF: tl.constexpr, SIZE: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum g, then g * zhat of at most SIZE branches, over every tile of a program.

    Grid (programs, rows, blocks of C); partial [programs, 1 + branches, C], row 0 the sum of g.
    """
    C = units * UNIT
    at = table + start + tl.program_id(1) * SUMS
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    g, pitch = place(bases, halves, at, False, UNIT), tl.load(at + 2).to(tl.int32) * UNIT
    count = tl.load(at + 9).to(tl.int32)
    first = table + start + branches + tl.load(at + 8) * BRANCH
    g_sum = tl.zeros([BP, BC], ACC)
    sums = (tl.zeros([BP, BC], ACC),) * SIZE
    for begin in range(tl.program_id(0) * BP, pixels, tl.num_programs(0) * BP):
        p = begin + tl.arange(0, BP)
        inside = (p < pixels)[:, None] & (c < C)[None, :]
        d = tl.load(g + (p * pitch)[:, None] + c[None, :], inside, 0.0).to(ACC)
        g_sum += d
        found = sums[:0]
        most = tl.zeros([BP, BC], ACC)
        mean = most
        if POOLED and tl.load(at + 10) >= 0:
            one = first + tl.load(at + 10) * BRANCH
            most, mean = pools(bases, halves, one, p, c, pixels, C, X_HALF, UNIT, ACC)
        for b in tl.static_range(SIZE):
            one = first + tl.minimum(b, count - 1) * BRANCH
            kind = tl.load(one + 7)
            offsets = (p * (tl.load(one + 2).to(tl.int32) * UNIT))[:, None] + c[None, :]
            v = loaded(bases, halves, one, offsets, inside & (b < count) & (kind == 0), UNIT, ACC)
            if POOLED:
                v = tl.where(kind == 1, most, tl.where(kind == 2, mean, v))
            norm = place(bases, halves, one + 3, False, UNIT)
            mu = tl.load(norm + c, c < C, 0.0)
            r = tl.load(norm + C + c, c < C, 0.0)
            zhat = (v - mu[None, :]) * r[None, :]
            found = found + (tl.where(inside, tl.fma(d, zhat, sums[b]), sums[b]),)
        sums = found
    rows = place(bases, halves, at + 3, False, UNIT) + tl.program_id(0) * (tl.load(at + 5) * UNIT)
    tl.store(rows + c, tl.sum(g_sum, 0), (c < C) & (tl.load(at + 6) == 1))
    rows += tl.load(at + 7) * C
    for b in tl.static_range(SIZE):
        tl.store(rows + b * C + c, tl.sum(sums[b], 0), (c < C) & (b < count))


@triton.jit(do_not_specialize=["start"])
def grouped_means_kernel(
    table, addresses, bases, halves, start, units,
    UNIT: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of a norm, for the gradient of its weight and its coef [4, C]; grid (norms,).

    A weight, coef or d_weight may be missing: then it is 1, or not asked for.
    """
    C = units * UNIT
    at = table + start + tl.program_id(0) * MEANS
    parts, pitch = tl.load(at + 5).to(tl.int32), tl.load(at + 4).to(tl.int32) * UNIT
    divisor = tl.load(at + 6).to(ACC)
    norm = place(bases, halves, at + 7, False, UNIT)
    weight = tl.load(place(bases, halves, at + 9, False, 1), there(at + 9), 1.0).to(ACC)
    flows = tl.load(at + 11) != 0
    coef, row = place(bases, halves, at + 12, False, UNIT), tl.load(at + 16) * UNIT
    total = tl.zeros([COLUMNS], ACC)
    for first in range(0, C, COLUMNS):
        c = first + tl.arange(0, COLUMNS)
        inside = (c < C) & there(at + 12)
        of_zhat = added(place(bases, halves, at + 2, False, UNIT), pitch, parts, c, C, PARTS, COLUMNS, ACC)
        of_g = added(place(bases, halves, at, False, UNIT), pitch, parts, c, C, PARTS, COLUMNS, ACC)
        total += of_zhat
        rho = tl.load(norm + C + c, c < C, 0.0)
        m, r = divide(of_g, divisor), divide(of_zhat, divisor) * rho
        tl.store(coef + c, tl.where(flows, m, 0.0), inside)
        tl.store(coef + row + c, tl.load(norm + c, c < C, 0.0), inside)
        tl.store(coef + 2 * row + c, tl.where(flows, r, 0.0), inside)
        tl.store(coef + 3 * row + c, weight * rho, inside)
    tl.store(place(bases, halves, at + 14, False, 1), tl.sum(total, 0), there(at + 14))


@triton.jit(do_not_specialize=["start"])
def grouped_add_kernel(
    table, addresses, bases, halves, start, pixels, units,
    UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill out = a + b, tiles [BP, BC] of every row; grid (tiles, blocks of C, rows)."""
    C = units * UNIT
    at = table + start + tl.program_id(2) * ADD
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    offsets = (p * (tl.load(at + 2).to(tl.int32) * UNIT))[:, None] + c[None, :]
    a = tl.load(place(bases, halves, at, False, UNIT) + offsets, inside, 0.0)
    b = tl.load(place(bases, halves, at + 3, False, UNIT) + (p * C)[:, None] + c[None, :], inside, 0.0)
    tl.store(place(bases, halves, at + 5, False, UNIT) + (p * C)[:, None] + c[None, :], a + b, inside)


@triton.jit(do_not_specialize=["start"])
def grouped_copy_kernel(
    table, addresses, bases, halves, start, pixels, units, HALF: tl.constexpr,
    UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill out = x, in halves with ``HALF``; grid (tiles, blocks of C, rows)."""
    C = units * UNIT
    at = table + start + tl.program_id(2) * COPY
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    offsets = (p * (tl.load(at + 2).to(tl.int32) * UNIT))[:, None] + c[None, :]
    x = tl.load(place(bases, halves, at, False, UNIT) + offsets, inside, 0.0)
    out = place(bases, halves, at + 3, HALF, UNIT)
    offsets = (p * (tl.load(at + 5).to(tl.int32) * UNIT))[:, None] + c[None, :]
    tl.store(out + offsets, x.to(out.dtype.element_ty), inside)
