"""How instructions that are alike become launches of grouped kernels, operator by operator.

For every operator: what must be equal within a launch, and a function that adds the launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from triton import cdiv

from dartsfast.fused.grouped import Address, At, Plan, Region, UngroupableError
from dartsfast.fused.program import Instruction, Place, Ref, as_float
from dartsfast.kernels import (
    branch_conv,
    grouped_conv,
    grouped_sum,
    images,
    mixed_sum,
    reduce,
)
from dartsfast.kernels.arithmetic import packed
from dartsfast.kernels.grouped import Work, units
from dartsfast.kernels.launch import block

Group = Sequence[Instruction]


def _steps(ref: Ref) -> tuple[int, ...]:
    """Return the strides of an image but the channels'."""
    return tuple(s if n > 1 else 0 for n, s in zip(ref.shape[:-1], ref.stride[:-1], strict=True))


def _alike(refs: Sequence[Ref]) -> tuple[int, ...]:
    """Return the strides that images of one operator share."""
    found = {_steps(ref) for ref in refs}
    if len(found) != 1:
        raise UngroupableError(f"images of one operator with strides {found}")
    return found.pop()


def _pitch(ref: Ref) -> int:
    """Return what lies between the pixels of an image that are numbered through."""
    N, H, W, C = ref.shape
    pitch = ref.stride[2]
    if ref.stride[:2] != (H * W * pitch, W * pitch) or ref.stride[3] != 1:
        raise UngroupableError(f"an image {ref.shape} with strides {ref.stride}")
    return pitch


def _dense(ref: Ref) -> Ref:
    if _pitch(ref) != ref.shape[3]:
        raise UngroupableError(f"an image {ref.shape} with strides {ref.stride}")
    return ref


def _at(ref: Ref, unit: int = 1) -> At:
    return At(ref.slot, ref.offset, unit, prod(ref.shape))


def _maybe(refs: Sequence[Ref], unit: int) -> At | None:
    """Return the place of the one, None for what is not there."""
    return _at(refs[0], unit) if refs else None


def _scaled(steps: Sequence[int], unit: int) -> tuple[int, ...]:
    return tuple(step // unit for step in steps)


def _pixels(ref: Ref) -> int:
    return prod(ref.shape[:3])


def _row(plan: Plan, ref: Ref, unit: int) -> At:
    """Return the place of the partial results of a vector."""
    region = plan.regions[ref.slot]
    row, offset = divmod(ref.offset, region.row)
    return At(ref.slot, row * region.parts * region.row + offset, unit, region.parts * 2 * ref.shape[-1])


def _conv_alike(plan: Plan, i: Instruction) -> Any:
    (x,), norm, depthwise, pointwise = i.reads
    z, stats = i.writes
    normed = norm[0].stride if norm else None
    into = z[0].shape, _alike(z), plan.half(z[0]), plan.slots[stats[0].slot].shape[-1]
    return x.shape, _steps(x), plan.half(x), normed, bool(depthwise), into, i.numbers[:2]


def _conv(plan: Plan, group: Group) -> None:
    (x,), norm, depthwise, _ = group[0].reads
    z, stats = group[0].writes
    stride, relu = group[0].numbers[:2]
    (N, H, W, Ci), (_, Ho, Wo, Co) = x.shape, z[0].shape
    row = plan.slots[stats[0].slot].shape[-1]
    tile = branch_conv.tile(Ci, Co, bool(depthwise), plan.itemsize == 8)
    pixels, rows = N * Ho * Wo, []
    tiles = cdiv(pixels, tile["BP"])
    sources = [i.reads[0][0] for i in group] + [ref for i in group for ref in i.reads[1]]
    ui = units(Ci, *_steps(x), *(ref.offset for ref in sources), *(norm[0].stride[:1] if norm else ()))
    uo = units(Co, row, *_steps(z[0]), *(ref.offset for i in group for part in i.writes for ref in part))
    for i in group:
        dilation = i.numbers[2:]
        for b, (image, moments) in enumerate(zip(*i.writes, strict=True)):
            if moments.slot not in plan.regions:
                plan.region(
                    moments.slot,
                    plan.slots[moments.slot].shape[0],
                    Region(tiles, tile["BP"], pixels, 2 * row),
                )
            taps = i.reads[2][b] if depthwise else None
            rows.append((
                _at(i.reads[0][0], ui), _maybe(i.reads[1], ui), _at(image, uo), _row(plan, moments, uo),
                Address(taps.slot) if taps else 0, Address(i.reads[3][b].slot),
                taps.shape[-1] if taps else 1, dilation[b] if taps else 1,
            ))  # fmt: skip
    half = plan.half(x) or plan.half(z[0])
    many = branch_conv.crowded(Ci, 2 if half else plan.itemsize)
    plan.add(
        Work(
            grouped_conv.grouped_conv_kernel,
            (tiles * len(rows), cdiv(Co, tile["BO"])),
            rows,
            (
                len(rows), _scaled(_steps(x), ui), norm[0].stride[0] // ui if norm else 0, _pitch(z[0]) // uo,
                row // uo, pixels, H, W, Ho, Wo, Ci // ui, Co // uo,
            ),
            dict(
                NORMED=bool(norm), TAPS=bool(depthwise), X_HALF=plan.half(x), Z_HALF=plan.half(z[0]),
                STRIDE=stride, RELU=bool(relu), PRECISION=branch_conv.PRECISION, UI=ui, UO=uo,
                many_registers=many or (bool(depthwise) and tile["BC"] > tile["BO"]), **tile,
            ),
            # Every block of output channels computes the depthwise output for itself.
            2 * pixels * Ci * sum(Co + (row[-2] ** 2 * cdiv(Co, tile["BO"]) if depthwise else 0)
                                  for row in rows),
        )
    )  # fmt: skip


def _pool_alike(plan: Plan, i: Instruction) -> Any:
    (x,) = i.reads[0]
    return x.shape, _steps(x), plan.half(x), i.numbers, _placed(plan, i)


def _placed(plan: Plan, i: Instruction) -> bool:
    """Whether a backward will ask which taps the maxima came from."""
    return any(pool.reads[1][0].slot == i.writes[0][0].slot for pool in plan.pools)


def _pool(plan: Plan, group: Group) -> None:
    (x,), (z, _) = group[0].reads[0], group[0].writes
    (_, H, W, C), (_, Ho, Wo, _) = x.shape, z[0].shape
    BP, BC = images.tile_of(C, 2 if plan.half(x) else plan.itemsize)
    pixels, placed = _pixels(z[0]), _placed(plan, group[0])
    tiles, u, rows = cdiv(pixels, BP), units(C, *_steps(x), *(i.reads[0][0].offset for i in group)), []
    for i in group:
        for moments in i.writes[1]:
            if moments.slot not in plan.regions:
                plan.region(moments.slot, 2, Region(tiles, BP, pixels, 2 * C))
        of = [_row(plan, moments, u) for moments in i.writes[1]]
        most = i.writes[0][0]
        place = None
        if placed:
            place = plan.places[most.slot] = plan.scratch(cdiv(prod(most.shape), plan.itemsize), u)  # bytes
        rows.append((_at(i.reads[0][0], u), *(_at(_dense(half), u) for half in i.writes[0]), *of, place))
    plan.add(
        Work(
            grouped_conv.grouped_pool_kernel,
            (tiles, cdiv(C, BC), len(rows)),
            rows,
            (_scaled(_steps(x), u), pixels, H, W, Ho, Wo, C // u),
            dict(
                PLACES=placed,
                X_HALF=plan.half(x),
                STRIDE=group[0].numbers[0],
                UNIT=u,
                BP=BP,
                BC=BC,
                num_warps=4,
            ),
            40 * pixels * C * len(rows),  # nine taps, and two halves' statistics
        )
    )


_RUNNING = (None, None, torch.int64)  # dtypes; None: that of the arithmetic


def _buffer(plan: Plan, ref: Ref, dtype: torch.dtype | None) -> Address:
    """Return the address of a running statistic."""
    wanted = dtype or plan.setting.dtype
    if plan.slots[ref.slot].dtype != wanted:
        raise UngroupableError(f"running statistics in {plan.slots[ref.slot].dtype} instead of {wanted}")
    return Address(ref.slot)


def _norms_alike(plan: Plan, i: Instruction) -> Any:
    own = i.reads[0][0].slot in plan.regions
    return own, i.reads[0][0].shape, bool(i.writes[1]), i.numbers[1:]


def _norms(plan: Plan, group: Group) -> None:
    own, (C,), moved, (share, eps) = _norms_alike(plan, group[0])
    u = units(C)
    rows: list[tuple[Any, ...]] = []
    for i in group:
        first: tuple[Any, ...]
        for k, (mean, variance, norm) in enumerate(zip(*i.reads, i.writes[0], strict=True)):
            if own:
                region = plan.regions[mean.slot]
                first = (_row(plan, mean, u), _at(norm, u), region.parts, region.pixels, region.of)
                running = [
                    _buffer(plan, part[k], moves) if part else 0
                    for part, moves in zip(i.writes[1:], _RUNNING, strict=True)
                ]
            else:
                first = (None, _at(norm, u), 0, 0, 0)
                running = [_buffer(plan, ref, None) for ref in (mean, variance)] + [0]
            rows.append((*first, *running))
    momentum = as_float(share)
    plan.add(
        Work(
            grouped_conv.grouped_norms_kernel,
            (len(rows),),
            rows,
            (
                C // u,
                None if momentum != momentum else packed(momentum, plan.itemsize == 8),
                packed(as_float(eps), plan.itemsize == 8),
            ),
            dict(
                OWN=own, MOVED=moved, UNIT=u, PARTS=reduce.PARTS,
                COLUMNS=(columns := block(C, reduce.LEAST, reduce.COLUMNS)), many_registers=True,
            ),
            sum(10 * row[3] * C for row in rows) if own else 4 * C * len(rows),
            cdiv(C, columns) * 2 * cdiv(max(row[3] for row in rows), reduce.PARTS) if own else 0,
        )
    )  # fmt: skip


def _branches(plan: Plan, i: Instruction, u: int, weighted: bool) -> list[tuple[Any, ...]]:
    """Return the rows of a sum's branches."""
    z, norm = i.reads[:2] if weighted else i.reads[1:]
    rows = []
    for b, image in enumerate(z):
        weight = _at(i.reads[2][b]) if weighted else None
        rows.append((_at(image, u), _pitch(image) // u, _at(norm[b], u), weight, 0))
    return rows


def _size(plan: Plan, refs: Sequence[Ref]) -> int:
    """Return the bytes of a number of the narrowest image."""
    return min(2 if plan.half(ref) else plan.itemsize for ref in refs)


def _skipped(plan: Plan, i: Instruction) -> bool:
    """Whether a sum is the gradient of an operation that is its source, to which pools add theirs."""
    (out,) = i.writes[0]
    readers = [pool for pool in plan.pools if pool.reads[4] == (out,)]
    if len(i.reads[0]) > 1 or i.reads[3] or not readers or i.reads[0] != readers[0].reads[0]:
        return False
    plan.skips[out.slot] = i.reads[2][0]
    return True


def _sum(plan: Plan, group: Group) -> None:
    group = [i for i in group if not _skipped(plan, i)]
    if not group:
        return
    (out,) = group[0].writes[0]
    C, pixels, rows = out.shape[-1], _pixels(out), []
    u = units(
        C,
        *(n for i in group for ref in (*i.reads[0], *i.reads[1], *i.reads[3], *i.writes[0])
          for n in (ref.offset, *_steps(ref))),
    )  # fmt: skip
    branches: list[tuple[Any, ...]] = []
    for i in group:
        base = i.reads[3]
        rows.append((
            _at(_dense(i.writes[0][0]), u), _maybe(base, u), _pitch(base[0]) // u if base else 0,
            len(branches), len(i.reads[0]), 0,
        ))  # fmt: skip
        branches += _branches(plan, i, u, weighted=True)
    BP, BC = images.tile_of(C, _size(plan, [ref for i in group for ref in i.reads[0]]))
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


def _sum_backward(plan: Plan, group: Group) -> None:
    (g,) = group[0].reads[0]
    C, pixels, rows = g.shape[-1], _pixels(g), []
    refs = [ref for i in group for part in i.reads for ref in part]
    u = units(C, *(n for ref in refs for n in (ref.offset, *_steps(ref))))
    size = _size(plan, [ref for i in group for ref in i.reads[1]])
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
                _at(i.reads[0][0], u), _pitch(i.reads[0][0]) // u,
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
    plan: Plan, g_mean: Ref, g_zhat_mean: Ref, norm: Ref, weight: Sequence[Ref], own: bool,
    coef: Ref | None, u: int,
) -> tuple[Any, ...]:  # fmt: skip
    region = plan.regions[g_mean.slot]
    d = plan.totals.pop((g_zhat_mean.slot, g_zhat_mean.offset), None)
    size = region.parts * norm.shape[-1]
    return (
        *(At(ref.slot, ref.offset, u, size) for ref in (g_mean, g_zhat_mean)), region.row // u,
        region.parts, region.of, _at(norm, u), _maybe(weight, 1), int(own),
        None if coef is None else _at(coef, u), None if d is None else _at(d),
        coef.stride[0] // u if coef else 0, 0,
    )  # fmt: skip


def _means(plan: Plan, rows: list[tuple[Any, ...]], C: int, parts: int, u: int) -> None:
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


def _coefs_alike(plan: Plan, i: Instruction) -> Any:
    mean = i.reads[0][0]
    return mean.shape, plan.regions[mean.slot].pixels


def _coefs(plan: Plan, group: Group) -> None:
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


def _add(plan: Plan, group: Group) -> None:
    out = group[0].writes[0][0]
    C, rows = out.shape[-1], []
    refs = [ref for i in group for part in (*i.reads, *i.writes) for ref in part]
    u = units(C, *(n for ref in refs for n in (ref.offset, *_steps(ref))))
    for i in group:
        (a,), (b,) = i.reads
        rows.append((_at(a, u), _pitch(a) // u, _at(_dense(b), u), _at(_dense(i.writes[0][0]), u), 0))
    _elementwise(plan, grouped_sum.grouped_add_kernel, out, rows, u, plan.itemsize)


def _elementwise(
    plan: Plan, kernel: Any, image: Ref, rows: list[tuple[Any, ...]], u: int, size: int, **options: Any
) -> None:
    BP, BC = images.tile_of(image.shape[-1], size)
    pixels, C = _pixels(image), image.shape[-1]
    grid = cdiv(pixels, BP), cdiv(C, BC), len(rows)
    options |= dict(UNIT=u, BP=BP, BC=BC, num_warps=4)
    plan.add(Work(kernel, grid, rows, (pixels, C // u), options, pixels * C * len(rows)))


def _copy_alike(plan: Plan, i: Instruction) -> Any:
    return i.reads[0][0].shape, plan.half(i.writes[0][0])


def _copies(plan: Plan, pairs: Sequence[tuple[Ref, Ref]]) -> None:
    u = units(*(n for pair in pairs for ref in pair for n in (ref.shape[-1], ref.offset, *_steps(ref))))
    rows = [(_at(x, u), _pitch(x) // u, _at(out, u), _pitch(out) // u) for x, out in pairs]
    half = plan.half(pairs[0][1])
    _elementwise(
        plan, grouped_sum.grouped_copy_kernel, pairs[0][0], rows, u, _size(plan, pairs[0]), HALF=half
    )


def _copy(plan: Plan, group: Group) -> None:
    _copies(plan, [(i.reads[0][0], i.writes[0][0]) for i in group])


def _concatenate(plan: Plan, group: Group) -> None:
    for i in group:
        start, (out,) = 0, i.writes[0]
        pairs = []
        for image in i.reads[0]:
            pairs.append((image, out.channels(start, start + image.shape[-1])))
            start += image.shape[-1]
        for C in sorted({image.shape[-1] for image, _ in pairs}):
            _copies(plan, [pair for pair in pairs if pair[0].shape[-1] == C])


def _zero(plan: Plan, group: Group) -> None:
    plan.zeroed |= {i.writes[0][0].slot for i in group}


def _no_key(plan: Plan, i: Instruction) -> Any:
    return i.writes[0][0].shape


def _g_shape(plan: Plan, i: Instruction) -> Any:
    return i.reads[0][0].shape


def _plans() -> dict[str, tuple[Callable[..., Any], Callable[..., None]]]:
    from dartsfast.fused import groups_backward

    return {
        "branch_conv": (_conv_alike, _conv),
        "pool3x3": (_pool_alike, _pool),
        "norm_stats": (_norms_alike, _norms),
        "mixed_sum": (_no_key, _sum),
        "mixed_sum_backward": (_g_shape, _sum_backward),
        "norm_stats_backward": (_coefs_alike, _coefs),
        "branch_conv_backward": (groups_backward.conv_alike, groups_backward.conv),
        "pool3x3_backward": (groups_backward.pool_alike, groups_backward.pool),
        "add": (_no_key, _add),
        "zero": (_no_key, _zero),
        "copy": (_copy_alike, _copy),
        "concatenate": (_no_key, _concatenate),
    }


PLANS = _plans()
