"""Convolutions, pools and the norms after them as launches of grouped kernels."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from triton import cdiv

from dartsfast.fused.groups.places import (
    Group,
    alike,
    at,
    dense,
    maybe,
    partial_row,
    pitch,
    pixels_of,
    sampled,
    scaled,
    steps,
)
from dartsfast.fused.launches import Address, Launches, Region
from dartsfast.fused.program import Instruction, Ref, as_float
from dartsfast.kernels import branch_conv, grouped_conv, images, reduce
from dartsfast.kernels.arithmetic import packed
from dartsfast.kernels.grouped import Work, units
from dartsfast.kernels.launch import block
from dartsfast.ops.contract import require

_RUNNING = (None, None, torch.int64)  # dtypes; None: that of the arithmetic


def conv_alike(plan: Launches, i: Instruction) -> Any:
    """Return what convolutions of one launch share: shapes, strides, dtypes and options.

    Without taps what lies around the pixels of an image is nothing to them.
    """
    (x,), norm, depthwise, pointwise = i.reads
    z, stats = i.writes
    normed = norm[0].stride if norm else None
    into = z[0].shape, alike(z), plan.half(z[0]), plan.slots[stats[0].slot].shape[-1]
    sizes = x.shape if depthwise else x.shape[-1:]
    return sizes, steps(x), plan.half(x), normed, bool(depthwise), into, i.numbers[:2]


def conv(plan: Launches, group: Group) -> None:
    """Add the convolutions of a group, with the partial statistics of what they return."""
    (x,), norm, depthwise, _ = group[0].reads
    z, stats = group[0].writes
    stride, relu = group[0].numbers[:2]
    (N, H, W, Ci), (_, Ho, Wo, Co) = x.shape, z[0].shape
    row = plan.slots[stats[0].slot].shape[-1]
    tile = branch_conv.tile(Ci, Co, bool(depthwise), plan.itemsize == 8)
    pixels, rows = N * Ho * Wo, []
    tiles = cdiv(pixels, tile["BP"])
    sources = [i.reads[0][0] for i in group] + [ref for i in group for ref in i.reads[1]]
    ui = units(Ci, *steps(x), *(ref.offset for ref in sources), *(norm[0].stride[:1] if norm else ()))
    uo = units(Co, row, *steps(z[0]), *(ref.offset for i in group for part in i.writes for ref in part))
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
            source = i.reads[0][0]
            rows.append((
                at(source, ui) if taps else sampled(source, pixels, ui), maybe(i.reads[1], ui),
                at(image, uo), partial_row(plan, moments, uo),
                Address(taps.slot) if taps else 0, Address(i.reads[3][b].slot),
                taps.shape[-1] if taps else 1, dilation[b] if taps else 1,
            ))  # fmt: skip
    many = plan.half(x) or plan.half(z[0]) or branch_conv.crowded(Ci, plan.itemsize)
    plan.add(
        Work(
            grouped_conv.grouped_conv_kernel,
            (tiles * len(rows), cdiv(Co, tile["BO"])),
            rows,
            (
                len(rows), scaled(steps(x), ui), norm[0].stride[0] // ui if norm else 0, pitch(z[0]) // uo,
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


def pool_alike(plan: Launches, i: Instruction) -> Any:
    """Return what pools of one launch share."""
    (x,) = i.reads[0]
    return x.shape, steps(x), plan.half(x), i.numbers, _again(plan, i)


def _again(plan: Launches, i: Instruction) -> bool:
    """Whether gradients that no convolution makes ask for averages and which taps the maxima came from."""
    alone = [pool for pool in plan.pools if pool.writes[0][0].slot not in plan.bases]
    return any(pool.reads[1][0].slot == i.writes[0][0].slot for pool in alone)


def pool(plan: Launches, group: Group) -> None:
    """Add the partial statistics of pools, or what their gradient asks for; sums make what they add again."""
    again = _again(plan, group[0])
    group = [i for i in group if again or i.writes[1][0].slot in plan.counted]
    if not group:
        return
    (x,), (z, _) = group[0].reads[0], group[0].writes
    (_, H, W, C), (_, Ho, Wo, _) = x.shape, z[0].shape
    BP, BC = images.tile_of(C, 2 if plan.half(x) else plan.itemsize)
    pixels = pixels_of(z[0])
    tiles, u, rows = cdiv(pixels, BP), units(C, *steps(x), *(i.reads[0][0].offset for i in group)), []
    for i in group:
        most, mean = i.writes[0]
        if again:
            place = plan.places[most.slot] = plan.scratch(cdiv(prod(most.shape), plan.itemsize), u)  # bytes
            made = [None, None, at(dense(mean), u), place]
        else:
            plan.region(i.writes[1][0].slot, 2, Region(tiles, BP, pixels, 2 * C))
            made = [*(partial_row(plan, moments, u) for moments in i.writes[1]), None, None]
        rows.append((at(i.reads[0][0], u), *made))
    plan.add(
        Work(
            grouped_conv.grouped_pool_kernel,
            (tiles, cdiv(C, BC), len(rows)),
            rows,
            (scaled(steps(x), u), pixels, H, W, Ho, Wo, C // u),
            dict(
                AGAIN=again,
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


def _buffer(plan: Launches, ref: Ref, dtype: torch.dtype | None) -> Address:
    """Return the address of a running statistic."""
    wanted = dtype or plan.setting.dtype
    found = plan.slots[ref.slot].dtype
    require(found == wanted, f"running statistics must be {wanted}, got {found}")
    return Address(ref.slot)


def norms_alike(plan: Launches, i: Instruction) -> Any:
    """Return what norms of one launch share: whose statistics, channels, whether they move, options."""
    own = i.reads[0][0].slot in plan.regions
    return own, i.reads[0][0].shape, bool(i.writes[1]), i.numbers[1:]


def norms(plan: Launches, group: Group) -> None:
    """Add the norms of a group: partial statistics become mean and 1 / std."""
    own, (C,), moved, (share, eps) = norms_alike(plan, group[0])
    u = units(C)
    rows: list[tuple[Any, ...]] = []
    for i in group:
        first: tuple[Any, ...]
        for k, (mean, variance, norm) in enumerate(zip(*i.reads, i.writes[0], strict=True)):
            if own:
                region = plan.regions[mean.slot]
                first = (partial_row(plan, mean, u), at(norm, u), region.parts, region.pixels, region.of)
                running = [
                    _buffer(plan, part[k], moves) if part else 0
                    for part, moves in zip(i.writes[1:], _RUNNING, strict=True)
                ]
            else:
                first = (None, at(norm, u), 0, 0, 0)
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
