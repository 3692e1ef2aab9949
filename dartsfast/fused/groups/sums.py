"""Weighted sums, their backward, and additions and copies as launches of grouped kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triton import cdiv

from dartsfast.fused.groups.places import (
    Group,
    at,
    dense,
    maybe,
    narrowest,
    pitch,
    pixels_of,
    scaled,
    steps,
)
from dartsfast.fused.launches import At, Launches, Region
from dartsfast.fused.memory import refs
from dartsfast.fused.program import Instruction, Place, Ref
from dartsfast.kernels import grouped_sum, mixed_sum, reduce
from dartsfast.kernels.grouped import Work, units
from dartsfast.kernels.images import CHANNELS, LEAST, tile_of
from dartsfast.kernels.launch import block
from dartsfast.ops.contract import require


def _sources(plan: Launches, images: Sequence[Ref]) -> list[Ref]:
    """Return what is read of images: those of pools are made again where they are added."""
    return [plan.pooled[image.slot][0] if image.slot in plan.pooled else image for image in images]


def _branches(plan: Launches, i: Instruction, u: int, weighted: bool) -> list[tuple[Any, ...]]:
    """Return the rows of a sum's branches."""
    z, norm = i.reads[:2] if weighted else i.reads[1:]
    rows: list[tuple[Any, ...]] = []
    for b, image in enumerate(z):
        others = at(norm[b], u), at(i.reads[2][b]) if weighted else None
        if image.slot in plan.pooled:
            x, half, stride = plan.pooled[image.slot]
            sizes = *x.shape[1:3], *image.shape[1:3], stride
            rows.append((at(x, u), 0, *others, 1 + half, *scaled(steps(x), u), *sizes))
        else:
            rows.append((at(image, u), pitch(image) // u, *others, *[0] * 9))
    return rows


def _pool_options(plan: Launches, images: Sequence[Ref]) -> dict[str, bool]:
    """Return whether pools are among images, and whether what they are of is stored in half precision."""
    halves = {plan.half(x) for x in _sources(plan, [z for z in images if z.slot in plan.pooled])}
    require(len(halves) < 2, "pools of images in two dtypes")
    return dict(POOLED=bool(halves), X_HALF=any(halves))


def _pool_operations(plan: Launches, images: Sequence[Ref]) -> int:
    """Return the operations an element that pools among images take."""
    return 18 * sum(image.slot in plan.pooled for image in images)


def mixed(plan: Launches, group: Group) -> None:
    """Add the weighted sums of a group, but those that pools will add to at once."""
    group = [i for i in group if i.writes[0][0] not in plan.skips]
    if not group:
        return
    outs = [i.writes[0][0] for i in group]
    C, pixels, rows = outs[0].shape[-1], pixels_of(outs[0]), []
    images = [ref for i in group for ref in i.reads[0]]
    refs = [ref for i in group for part in (i.reads[1], i.reads[3], i.writes[0]) for ref in part]
    refs += [plan.narrowed[out] for out in outs if out in plan.narrowed]
    u = units(C, *(n for ref in (*refs, *_sources(plan, images)) for n in (ref.offset, *steps(ref))))
    branches: list[tuple[Any, ...]] = []
    for i in group:
        base, (image,) = i.reads[3], i.writes[0]
        half = plan.narrowed.get(image)
        rows.append((
            at(image, u) if half is None or _read(plan, image) else None, pitch(image) // u,
            maybe(base, u), pitch(base[0]) // u if base else 0,
            len(branches), len(i.reads[0]), at(dense(half), u) if half else None,
        ))  # fmt: skip
        branches += _branches(plan, i, u, weighted=True)
    BP, BC = tile_of(C, narrowest(plan, _sources(plan, images)))
    BP *= mixed_sum.VECTORS
    plan.add(
        Work(
            grouped_sum.grouped_sum_kernel,
            (cdiv(pixels, BP), cdiv(C, BC), len(rows)),
            rows + branches,
            (grouped_sum.SUM.value * len(rows), pixels, C // u),
            dict(
                HALVED=any(row[-1] for row in rows), UNIT=u, BP=BP, BC=BC, num_warps=4,
                **_pool_options(plan, images),
            ),
            pixels * C * (4 * len(branches) + _pool_operations(plan, images)),
        )
    )  # fmt: skip


def _read(plan: Launches, out: Ref) -> bool:
    """Whether a sum is more than what is stored of it in half precision."""
    instructions = [i for section in plan.program.sections for i in section if i.op != "copy"]
    return plan.slots[out.slot].place != Place.TEMPORARY or any(
        ref.slot == out.slot for i in instructions for ref in refs(i.reads)
    )


def mixed_backward(plan: Launches, group: Group) -> None:
    """Add the partial sums of the backward, and gradients of weights that no coef comes with."""
    (g,) = group[0].reads[0]
    C, pixels, rows = g.shape[-1], pixels_of(g), []
    images = [ref for i in group for ref in i.reads[1]]
    refs = [ref for i in group for part in (i.reads[0], i.reads[2]) for ref in part] + _sources(plan, images)
    u = units(C, *(n for ref in refs for n in (ref.offset, *steps(ref))))
    size = narrowest(plan, _sources(plan, images))
    BP, BC = tile_of(C, size)
    programs = min(mixed_sum.PROGRAMS, cdiv(pixels, BP))
    SIZE = mixed_sum.SUMS // (mixed_sum.VECTOR // size * plan.itemsize)
    branches: list[tuple[Any, ...]] = []
    for i in group:
        d_weights, (g_mean,), _ = i.writes
        count = len(i.reads[1])
        row = (1 + count) * C
        plan.region(g_mean.slot, 1, Region(programs, 0, pixels, row))
        for first, last, pool in _together(plan, i.reads[1], SIZE):
            rows.append((
                at(i.reads[0][0], u), pitch(i.reads[0][0]) // u,
                At(g_mean.slot, 0, u, programs * row), row // u,
                int(first == 0), 1 + first, len(branches) + first, last - first, pool, 0,
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
            (grouped_sum.SUMS.value * len(rows), pixels, C // u),
            dict(SIZE=SIZE, UNIT=u, BP=BP, BC=BC, num_warps=4, **_pool_options(plan, images)),
            pixels * C * (5 * len(branches) + _pool_operations(plan, images)),
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


def _together(plan: Launches, images: Sequence[Ref], most: int) -> list[tuple[int, int, int]]:
    """Return first and last of images that a program takes, and which is of windows, from the first, or -1.

    At most so many, and of windows of one image at most.
    """
    found: list[tuple[int, int, int]] = []
    first, pool, windows = 0, -1, None
    for k, image in enumerate(images):
        x, _, stride = plan.pooled.get(image.slot, (None, 0, 0))
        if k - first == most or (x and windows and windows != (x, stride)):
            found.append((first, k, pool))
            first, pool, windows = k, -1, None
        if x and not windows:
            pool, windows = k - first, (x, stride)
    return [*found, (first, len(images), pool)]


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
    columns = block(C, LEAST, CHANNELS)
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
    BP, BC = tile_of(image.shape[-1], size)
    pixels, C = pixels_of(image), image.shape[-1]
    grid = cdiv(pixels, BP), cdiv(C, BC), len(rows)
    options |= dict(UNIT=u, BP=BP, BC=BC, num_warps=4)
    plan.add(Work(kernel, grid, rows, (pixels, C // u), options, pixels * C * len(rows)))


def copy_alike(plan: Launches, i: Instruction) -> Any:
    """Return what copies of one launch share."""
    return i.reads[0][0].shape, plan.half(i.writes[0][0])


def copy(plan: Launches, group: Group) -> None:
    """Add the copies of a group, but those that sums make."""
    found = [(i.reads[0][0], i.writes[0][0]) for i in group]
    pairs = [(image, to) for image, to in found if plan.narrowed.get(image) != to]
    if not pairs:
        return
    u = units(*(n for pair in pairs for ref in pair for n in (ref.shape[-1], ref.offset, *steps(ref))))
    rows = [(at(x, u), pitch(x) // u, at(out, u), pitch(out) // u) for x, out in pairs]
    half = plan.half(pairs[0][1])
    _elementwise(
        plan, grouped_sum.grouped_copy_kernel, pairs[0][0], rows, u, narrowest(plan, pairs[0]), HALF=half
    )


def zero(plan: Launches, group: Group) -> None:
    """Note what is zero where nothing is written."""
    plan.zeroed |= {i.writes[0][0].slot for i in group}


def by_shape(plan: Launches, i: Instruction) -> Any:
    """Return what sums of one launch share: the shape of their result."""
    return i.writes[0][0].shape


def by_gradient(plan: Launches, i: Instruction) -> Any:
    """Return the same of their backward: the shape of the gradient."""
    return i.reads[0][0].shape
