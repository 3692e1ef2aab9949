"""Weighted sums, their backward, and additions and copies as launches of grouped kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triton import cdiv

from dartsfast.fused.groups.places import Group, at, dense, maybe, narrowest, pitch, pixels_of, steps
from dartsfast.fused.launches import At, Launches, Region
from dartsfast.fused.program import Instruction, Place, Ref
from dartsfast.kernels import grouped_sum, images, mixed_sum, reduce
from dartsfast.kernels.grouped import Work, units
from dartsfast.kernels.launch import block


def _branches(plan: Launches, i: Instruction, u: int, weighted: bool) -> list[tuple[Any, ...]]:
    """Return the rows of a sum's branches."""
    z, norm = i.reads[:2] if weighted else i.reads[1:]
    rows = []
    for b, image in enumerate(z):
        weight = at(i.reads[2][b]) if weighted else None
        rows.append((at(image, u), pitch(image) // u, at(norm[b], u), weight, 0))
    return rows


def _skipped(plan: Launches, i: Instruction) -> bool:
    """Whether a sum is the gradient of an operation that is its source, to which pools add theirs."""
    (out,) = i.writes[0]
    readers = [pool for pool in plan.pools if pool.reads[4] == (out,)]
    if len(i.reads[0]) > 1 or i.reads[3] or not readers or i.reads[0] != readers[0].reads[0]:
        return False
    plan.skips[out.slot] = i.reads[2][0]
    return True


def mixed(plan: Launches, group: Group) -> None:
    """Add the weighted sums of a group, but those that pools will add to at once."""
    group = [i for i in group if not _skipped(plan, i)]
    if not group:
        return
    (out,) = group[0].writes[0]
    C, pixels, rows = out.shape[-1], pixels_of(out), []
    u = units(
        C,
        *(n for i in group for ref in (*i.reads[0], *i.reads[1], *i.reads[3], *i.writes[0])
          for n in (ref.offset, *steps(ref))),
    )  # fmt: skip
    branches: list[tuple[Any, ...]] = []
    for i in group:
        base = i.reads[3]
        rows.append((
            at(dense(i.writes[0][0]), u), maybe(base, u), pitch(base[0]) // u if base else 0,
            len(branches), len(i.reads[0]), 0,
        ))  # fmt: skip
        branches += _branches(plan, i, u, weighted=True)
    BP, BC = images.tile_of(C, narrowest(plan, [ref for i in group for ref in i.reads[0]]))
    BP *= mixed_sum.VECTORS
    plan.add(
        Work(
            grouped_sum.grouped_sum_kernel,
            (cdiv(pixels, BP), cdiv(C, BC), len(rows)),
            rows + branches,
            (8 * len(rows), pixels, C // u),
            dict(UNIT=u, BP=BP, BC=BC, num_warps=4),
            4 * pixels * C * len(branches),
        )
    )


def mixed_backward(plan: Launches, group: Group) -> None:
    """Add the partial sums of the backward, and gradients of weights that no coef comes with."""
    (g,) = group[0].reads[0]
    C, pixels, rows = g.shape[-1], pixels_of(g), []
    refs = [ref for i in group for part in i.reads for ref in part]
    u = units(C, *(n for ref in refs for n in (ref.offset, *steps(ref))))
    size = narrowest(plan, [ref for i in group for ref in i.reads[1]])
    BP, BC = images.tile_of(C, size)
    programs = min(mixed_sum.PROGRAMS, cdiv(pixels, BP))
    SIZE = mixed_sum.SUMS // (mixed_sum.VECTOR // size * plan.itemsize)
    branches: list[tuple[Any, ...]] = []
    for i in group:
        d_weights, (g_mean,), _ = i.writes
        count = len(i.reads[1])
        row = (1 + count) * C
        plan.region(g_mean.slot, 1, Region(programs, 0, pixels, row))
        for first in range(0, count, SIZE):
            rows.append((
                at(i.reads[0][0], u), pitch(i.reads[0][0]) // u,
                At(g_mean.slot, 0, u, programs * row), row // u,
                int(first == 0), 1 + first, len(branches) + first, min(SIZE, count - first),
            ))  # fmt: skip
        branches += _branches(plan, i, u, weighted=False)
        for b, d in enumerate(d_weights):
            if plan.slots[d.slot].place == Place.RETURNED:
                plan.totals[g_mean.slot, (1 + b) * C] = d
    plan.add(
        Work(
            grouped_sum.grouped_sum_backward_kernel,
            (programs, len(rows), cdiv(C, BC)),
            rows + branches,
            (10 * len(rows), pixels, C // u),
            dict(SIZE=SIZE, UNIT=u, BP=BP, BC=BC, num_warps=4),
            5 * pixels * C * len(branches),
            cdiv(pixels, BP * programs),
        )
    )
    lone = [
        _mean_row(plan, i.writes[1][0], zhat, norm, (), False, None, units(C))
        for i in group
        for zhat, norm in zip(i.writes[2], i.reads[2], strict=True)
        if (zhat.slot, zhat.offset) in plan.totals and (zhat.slot, zhat.offset) not in plan.read
    ]
    if lone:
        _means(plan, lone, C, mixed_sum.PARTS, units(C))


def _mean_row(
    plan: Launches, g_mean: Ref, g_zhat_mean: Ref, norm: Ref, weight: Sequence[Ref], own: bool,
    coef: Ref | None, u: int,
) -> tuple[Any, ...]:  # fmt: skip
    region = plan.regions[g_mean.slot]
    d = plan.totals.pop((g_zhat_mean.slot, g_zhat_mean.offset), None)
    size = region.parts * norm.shape[-1]
    return (
        *(At(ref.slot, ref.offset, u, size) for ref in (g_mean, g_zhat_mean)), region.row // u,
        region.parts, region.of, at(norm, u), maybe(weight, 1), int(own),
        None if coef is None else at(coef, u), None if d is None else at(d),
        coef.stride[0] // u if coef else 0, 0,
    )  # fmt: skip


def _means(plan: Launches, rows: list[tuple[Any, ...]], C: int, parts: int, u: int) -> None:
    columns = block(C, images.LEAST, images.CHANNELS)
    plan.add(
        Work(
            grouped_sum.grouped_means_kernel,
            (len(rows),),
            rows,
            (C // u,),
            dict(UNIT=u, PARTS=parts, COLUMNS=columns, num_warps=4, many_registers=True),
            sum(2 * row[3] * C for row in rows),
            cdiv(C, columns) * cdiv(max(row[3] for row in rows), parts),
        )
    )


def coefs_alike(plan: Launches, i: Instruction) -> Any:
    """Return what norms of one launch share: channels, and whose partial sums they add up."""
    mean = i.reads[0][0]
    return mean.shape, plan.regions[mean.slot].pixels


def coefs(plan: Launches, group: Group) -> None:
    """Add up the partial sums of a group, to coef [4, C] and gradients of mixing weights."""
    (C,) = group[0].reads[0][0].shape
    refs = [ref for i in group for part in (*i.reads[:3], *i.writes) for ref in part]
    u = units(C, *(ref.offset for ref in refs))
    rows = []
    for i in group:
        g_mean, g_zhat_mean, norm, weights = i.reads
        for b, coef in enumerate(i.writes[0]):
            weight = weights[b : b + 1]
            rows.append(
                _mean_row(plan, g_mean[b], g_zhat_mean[b], norm[b], weight, bool(i.numbers[b]), coef, u)
            )
    tiled = plan.regions[group[0].reads[0][0].slot].pixels
    _means(plan, rows, C, reduce.PARTS if tiled else mixed_sum.PARTS, u)


def add(plan: Launches, group: Group) -> None:
    """Add the additions of a group."""
    out = group[0].writes[0][0]
    C, rows = out.shape[-1], []
    refs = [ref for i in group for part in (*i.reads, *i.writes) for ref in part]
    u = units(C, *(n for ref in refs for n in (ref.offset, *steps(ref))))
    for i in group:
        (a,), (b,) = i.reads
        rows.append((at(a, u), pitch(a) // u, at(dense(b), u), at(dense(i.writes[0][0]), u), 0))
    _elementwise(plan, grouped_sum.grouped_add_kernel, out, rows, u, plan.itemsize)


def _elementwise(
    plan: Launches, kernel: Any, image: Ref, rows: list[tuple[Any, ...]], u: int, size: int, **options: Any
) -> None:
    BP, BC = images.tile_of(image.shape[-1], size)
    pixels, C = pixels_of(image), image.shape[-1]
    grid = cdiv(pixels, BP), cdiv(C, BC), len(rows)
    options |= dict(UNIT=u, BP=BP, BC=BC, num_warps=4)
    plan.add(Work(kernel, grid, rows, (pixels, C // u), options, pixels * C * len(rows)))


def copy_alike(plan: Launches, i: Instruction) -> Any:
    """Return what copies of one launch share."""
    return i.reads[0][0].shape, plan.half(i.writes[0][0])


def _copies(plan: Launches, pairs: Sequence[tuple[Ref, Ref]]) -> None:
    u = units(*(n for pair in pairs for ref in pair for n in (ref.shape[-1], ref.offset, *steps(ref))))
    rows = [(at(x, u), pitch(x) // u, at(out, u), pitch(out) // u) for x, out in pairs]
    half = plan.half(pairs[0][1])
    _elementwise(
        plan, grouped_sum.grouped_copy_kernel, pairs[0][0], rows, u, narrowest(plan, pairs[0]), HALF=half
    )


def copy(plan: Launches, group: Group) -> None:
    """Add the copies of a group."""
    _copies(plan, [(i.reads[0][0], i.writes[0][0]) for i in group])


def concatenate(plan: Launches, group: Group) -> None:
    """Add the copies of images side by side."""
    for i in group:
        start, (out,) = 0, i.writes[0]
        pairs = []
        for image in i.reads[0]:
            pairs.append((image, out.channels(start, start + image.shape[-1])))
            start += image.shape[-1]
        for C in sorted({image.shape[-1] for image, _ in pairs}):
            _copies(plan, [pair for pair in pairs if pair[0].shape[-1] == C])


def zero(plan: Launches, group: Group) -> None:
    """Note what is zero where nothing is written."""
    plan.zeroed |= {i.writes[0][0].slot for i in group}


def by_shape(plan: Launches, i: Instruction) -> Any:
    """Return what sums of one launch share: the shape of their result."""
    return i.writes[0][0].shape


def by_gradient(plan: Launches, i: Instruction) -> Any:
    """Return the same of their backward: the shape of the gradient."""
    return i.reads[0][0].shape
