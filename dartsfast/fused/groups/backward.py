"""Launches of the backward of convolutions and pools: what a section has alike is one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

from triton import cdiv

from dartsfast.fused.groups.places import (
    Group,
    alike,
    at,
    dense,
    maybe,
    pitch,
    pixels_of,
    sampled,
    scaled,
    steps,
)
from dartsfast.fused.launches import Address, At, Launches, Region
from dartsfast.fused.program import Instruction, Place, Ref, in_place
from dartsfast.kernels import (
    branch_conv,
    branch_conv_backward,
    grouped_conv_backward,
    grouped_stage_backward,
    images,
    reduce,
)
from dartsfast.kernels.grouped import Work, units


def conv_alike(plan: Launches, i: Instruction) -> Any:
    """Return what branch_conv_backward must share."""
    g, z, coef, (x,), norm, depthwise, _, _, onto = i.reads
    dx, _, d_pointwise, means = i.writes
    outputs = g[0].shape, alike(z), plan.half(z[0]), coef[0].stride, len(plan.reduced.get(i, ()))
    inputs = x.shape, steps(x), plan.half(x), norm[0].stride if norm else None, bool(means)
    to = tuple(steps(refs[0]) for refs in (onto, dx) if refs), in_place(i)
    pool = _pooled(plan, i)
    base = pool and tuple(steps(pool.reads[k][0]) for k in (0, 3))
    return outputs, inputs, bool(depthwise), i.numbers[:2], bool(dx), bool(d_pointwise), to, base


def _pooled(plan: Launches, i: Instruction) -> Instruction | None:
    """Return the pool whose gradient is the base of a convolution's."""
    base = i.reads[7]
    return plan.bases.get(base[0].slot) if base else None


_G, _Z, _COEF, _BY_POINTWISE, _BY_DEPTHWISE, _POINTWISE, _DEPTHWISE, _K, _D = range(9)  # of a branch's row
_BRANCHES, _OWN, _POOL = 7, 8, 8  # of an input's row: how many, memory of its programs, entries for a pool
_INPUT, _GRADIENT = grouped_conv_backward.INPUT.value, grouped_conv_backward.GRADIENT.value


_PROGRAMS = 320  # that have memory of their own, for rows of dt
_WAITING = 1 << 24  # numbers of partial sums of weights' gradients


class _Conv:
    """What the launches of a group share."""

    def __init__(self, plan: Launches, group: Group) -> None:
        g, z, coef, (x,), norm, depthwise, _, _, onto = group[0].reads
        dx = group[0].writes[0]
        self.plan, self.group = plan, group
        (N, Ho, Wo, self.Co), (_, H, W, self.Ci) = g[0].shape, x.shape
        self.pixels, self.inputs = N * Ho * Wo, N * H * W
        self.sizes = H, W, Ho, Wo
        self.stride, self.relu = group[0].numbers[:2]
        self.tapped = bool(depthwise)
        sources = [
            ref for i in group for part in (*i.reads[3:5], *i.reads[7:], *i.writes[:1]) for ref in part
        ]
        self.pools = [pool for i in group if (pool := _pooled(plan, i))]
        sources += [ref for pool in self.pools for ref in _refs(pool)]
        self.ui = units(self.Ci, *(n for ref in sources for n in (ref.offset, *steps(ref))))
        self.reduced = [half for i in group for half in plan.reduced.get(i, ())]
        outputs = [ref for i in (*group, *self.reduced) for part in i.reads[:3] for ref in part]
        self.uo = units(self.Co, *(n for ref in outputs for n in (ref.offset, *steps(ref))))
        self.dz = scaled(steps(z[0]), self.uo), coef[0].stride[0] // self.uo
        self.source = scaled(steps(x), self.ui), norm[0].stride[0] // self.ui if norm else 0
        self.normed = bool(norm)
        self.in_place = in_place(group[0])
        self.onto = [scaled(steps(part[0]), self.ui) if part else (0, 0, 0) for part in (onto, dx)]
        self.tile = branch_conv.tile(self.Ci, self.Co, self.tapped, plan.itemsize == 8)
        self.tap_tile = {
            **self.tile, "BP": branch_conv_backward.TAPS // self.tile["BC"], "BO": 16, "num_warps": 4
        }  # fmt: skip
        self.taps = 16 // plan.itemsize  # that are summed up at a time
        self.halves = dict(X_HALF=plan.half(x), Z_HALF=plan.half(z[0]))
        self.blocks = cdiv(self.Ci, self.tile["BC"])
        self.span = branch_conv_backward.span_of(self.pixels, self.tile["BP"], self.Ci, self.Co)
        self.splits = cdiv(self.pixels, self.span)
        self.by_half = [self._row(half, 0, 0, [None, None]) for half in self.reduced]
        self.by_branch, self.by_input = self._rows()

    def _rows(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return the rows of branches and of inputs."""
        plan = self.plan
        branches: list[tuple[Any, ...]] = []
        inputs: list[tuple[Any, ...]] = []
        shape = self.tap_tile if self.tapped else self.tile
        tiles = cdiv(self.inputs, shape["BP"])
        for k, i in enumerate(self.group):
            g, _, _, (x,), norm, *_, base, onto = i.reads
            dx, d_depthwise, d_pointwise, means = i.writes
            partial = None
            if means and dx:
                plan.region(means[0].slot, 1, Region(tiles, shape["BP"], self.inputs, 2 * self.Ci))
                partial = At(means[0].slot, 0, self.ui, tiles * 2 * self.Ci)
            images = [maybe(refs, self.ui) for refs in ((x,), onto, dx)]
            if self.in_place:
                images = [sampled(image, self.pixels, self.ui) for image in (x, *onto, *dx)]
            inputs.append((
                images[0], maybe(norm, self.ui),
                None if self.pools else maybe([dense(b) for b in base], self.ui),
                *images[1:], partial, len(self.reduced) + len(branches), len(g), None,
                *(_pool_row(plan, self.pools[k], self.ui) if self.pools else [None] * _POOL),
            ))  # fmt: skip
            for b in range(len(g)):
                partials = [self._partial(refs[b : b + 1]) for refs in (d_pointwise, d_depthwise)]
                branches.append(self._row(i, b, k, partials))
        return branches, inputs

    def _row(self, i: Instruction, b: int, source: int, partials: Sequence[At | None]) -> tuple[Any, ...]:
        """Return the row of a branch."""
        g, z, coef, _, _, depthwise, pointwise, *_ = (refs[b : b + 1] for refs in i.reads)
        return (
            *(at(refs[0], self.uo) for refs in (g, z, coef)), *partials, Address(pointwise[0].slot),
            Address(depthwise[0].slot) if depthwise else 0, depthwise[0].shape[-1] if depthwise else 1,
            i.numbers[2 + b] if depthwise else 1, source, pitch(g[0]) // self.uo,
        )  # fmt: skip

    def _partial(self, out: Sequence[Any]) -> At | None:
        """Return the place of a weight gradient's partial sums."""
        if not out:
            return None
        size = prod(out[0].shape)
        partial = self.plan.scratch(self.splits * size)
        if self.plan.slots[out[0].slot].place == Place.RETURNED:
            self.plan.summed.add(out[0].slot)
            self.plan.sums.append((partial, at(out[0]), size, self.splits))
        return partial

    def _touched(self, of_branches: Sequence[int], of_inputs: Sequence[int]) -> list[Any]:
        """Return the entries of rows that a launch goes by."""
        found = [row[k] for row in self.by_branch for k in of_branches]
        return found + [row[k] for row in self.by_input for k in of_inputs]

    def _products(self) -> int:
        return 2 * self.pixels * self.Ci * self.Co * len(self.by_branch)

    def _of_halves(self) -> int:
        return len(self.reduced) * self.pixels * self.Ci * self.Co  # each makes half of the channels

    def _tap_operations(self) -> int:
        if not self.tapped:
            return 0
        return 2 * self.pixels * self.Ci * sum(row[_K] ** 2 for row in self.by_branch)

    def stage(self, by_input: bool, by_weights: bool) -> None:
        """Add dx of every input, and the gradients of both weights of every branch."""
        TP = self.tap_tile["BP"]
        chunk = branch_conv_backward.CHUNK * TP
        pixels, span = (self.pixels, self.span) if by_weights else (self.inputs, chunk)
        splits = cdiv(pixels, span)
        reaches = [row[_D] * (row[_K] - 1) // 2 for row in self.by_branch] if by_input else []
        rows = [_rows_reached(pixels, span, chunk, *self.sizes, self.stride, reach) for reach in reaches]
        made = sum(total for _, total in rows) if by_input else self.pixels * len(self.by_branch)
        most = max(most for most, _ in rows) if by_input else min(chunk, span)
        pooled = by_input and bool(self.pools)
        windows, shared = (
            _rows_reached(pixels, span, chunk, *self.sizes, self.stride, 1) if pooled else (0, 0)
        )
        summed = pooled or (by_input and len(self.by_branch) > len(self.group))
        itemsize = self.plan.itemsize  # a window's tap is a byte more
        most_rows = max(most, cdiv(windows * (itemsize + 1), itemsize))
        room = cdiv((summed * chunk + most_rows) * self.tile["BC"], 16)
        programs = max(1, min(splits, _PROGRAMS // (self.blocks * len(self.group))))
        programs = cdiv(splits, cdiv(splits, programs))
        inputs = [
            (*row[:_OWN], self.plan.scratch(programs * self.blocks * room * 16, 16), *row[_OWN + 1 :])
            for row in self.by_input
        ]
        entries = (*range(6), *range(_OWN, _OWN + 1 + _POOL)) if by_input else (0, 1, _OWN)
        touched = [row[k] for row in inputs for k in entries]
        if by_input:
            touched += [row[k] for row in self.by_half for k in (_G, _Z, _COEF, _POINTWISE)]
        weights = (_BY_POINTWISE, _BY_DEPTHWISE) if by_weights else ()
        self.plan.add(
            Work(
                grouped_stage_backward.grouped_stage_backward_kernel,
                (programs * len(self.group), self.blocks),
                inputs + self.by_half + self.by_branch,
                (
                    _INPUT * len(inputs), len(inputs), splits, span, room, pixels, *self.dz, *self.source,
                    *self.onto, self._pool_strides(), *self.sizes, self.Ci // self.ui, self.Co // self.uo,
                ),
                dict(
                    BY_INPUT=by_input, BY_WEIGHTS=by_weights, SUMMED=summed, POOLED=pooled,
                    HALVES=by_input * len(self.reduced) // len(self.group), CHUNK=chunk, TP=TP, BT=self.taps,
                    **self._options(),
                ),
                2 * made * self.Ci * self.Co + by_input * (self._tap_operations() + self._of_halves())
                + pooled * len(inputs) * self.Ci * (25 * shared + 6 * self.inputs * _reach(self.stride) ** 2)
                + by_weights * (self._products() + 2 * self._tap_operations()),
                self._rounds(cdiv(splits, programs) * cdiv(span, chunk), most, windows, by_input, by_weights),
            ),
            self._touched((_G, _Z, _COEF, _POINTWISE, _DEPTHWISE, *weights), ()) + touched,
        )  # fmt: skip

    def _pool_strides(self) -> tuple[tuple[int, ...], ...]:
        """Return the strides of g and x of the pools, in units."""
        if not self.pools:
            return (0, 0, 0), (0, 0, 0)
        g, x = (steps(self.pools[0].reads[k][0]) for k in (0, 3))
        return scaled(g, self.ui), scaled(x, self.ui)

    def _rounds(self, chunks: int, most: int, windows: int, by_input: bool, by_weights: bool) -> int:
        """Return the rounds of a program: of every chunk and branch dt, its adjoint and both products."""
        TP, BP = self.tap_tile["BP"], self.tile["BP"]
        chunk = branch_conv_backward.CHUNK * TP
        tiles = cdiv(chunk, TP)
        found = 0
        for row in self.by_branch[: self.by_input[0][_BRANCHES]]:
            taps = cdiv(row[_K] ** 2, self.taps)  # through its pixels again for every block of taps
            found += cdiv(most, BP) + by_input * tiles + by_weights * (cdiv(chunk, BP) + taps * tiles)
        return chunks * (found + cdiv(windows, TP) + by_input * tiles)

    def input_gradient(self) -> None:
        """Add dx of every input."""
        self.plan.add(
            Work(
                grouped_conv_backward.grouped_input_gradient_kernel,
                (cdiv(self.inputs, self.tile["BP"]), self.blocks, len(self.group)),
                self.by_input + self.by_branch,
                (
                    _INPUT * len(self.by_input), *self.dz, *self.source, *self.onto, self.inputs,
                    *self.sizes, self.Ci // self.ui, self.Co // self.uo,
                ),
                dict(IN_PLACE=self.in_place, **self._options()),
                self._products(),
            ),
            self._touched((_G, _Z, _COEF, _POINTWISE), range(6)),
        )  # fmt: skip

    def pointwise_gradient(self) -> None:
        """Add the gradient of the weight of every branch."""
        branches = len(self.by_branch)
        self.plan.add(
            Work(
                grouped_conv_backward.grouped_pointwise_gradient_kernel,
                (self.splits * branches, cdiv(self.Co, self.tile["BO"]), self.blocks),
                self.by_branch + self.by_input,
                (
                    _GRADIENT * branches, branches, *self.dz, *self.source, self.pixels, self.span,
                    *self.sizes, self.Ci // self.ui, self.Co // self.uo,
                ),
                self._options(),
                self._products(),
                cdiv(self.span, self.tile["BP"]),
            ),
            [
                *self._touched((_G, _Z, _COEF, _BY_POINTWISE), (1,)),
                *(sampled(i.reads[3][0], self.pixels, self.ui) for i in self.group),
            ],
        )  # fmt: skip

    def _options(self) -> dict[str, Any]:
        """Return the options of all kernels."""
        return dict(
            NORMED=self.normed, **self.halves, STRIDE=self.stride, RELU=bool(self.relu),
            PRECISION=branch_conv.PRECISION, UI=self.ui, UO=self.uo, many_registers=True, **self.tile,
        )  # fmt: skip


@cache
def _rows_reached(
    pixels: int, span: int, chunk: int, H: int, W: int, Ho: int, Wo: int, stride: int, reach: int
) -> tuple[int, int]:
    """Return how many output pixels the taps of a chunk of input pixels reach: at most, and all together."""
    most = total = 0
    for split in range(0, pixels, span):
        for begin in range(split, end := min(split + span, pixels), chunk):
            (n, y), (m, bottom) = (divmod(p // W, H) for p in (begin, min(begin + chunk, end) - 1))
            rows = m * Ho + min((bottom + reach) // stride, Ho - 1) + 1 - n * Ho - max(y - reach, 0) // stride
            most, total = max(most, rows * Wo), total + rows * Wo
    return most, total


def add_up(plan: Launches) -> None:
    """Add up what there is of weights' gradients."""
    rows, plan.sums = plan.sums, []
    u = units(*(row[2] for row in rows))
    if rows:
        plan.add(
            Work(
                grouped_conv_backward.grouped_weight_sums_kernel,
                (cdiv(max(row[2] for row in rows), reduce.COLUMNS), len(rows)),
                [(*(p._replace(unit=u) for p in row[:2]), row[2] // u, row[3]) for row in rows],
                (),
                dict(UNIT=u, PARTS=reduce.PARTS, COLUMNS=reduce.COLUMNS),
                sum(row[2] * row[3] for row in rows),
                max(cdiv(row[3], reduce.PARTS) for row in rows),
            )
        )


def conv(plan: Launches, group: Group) -> None:
    """Add the backward of convolutions."""
    launches = _Conv(plan, group)
    dx, _, d_pointwise, _ = group[0].writes
    by_input, by_weights = bool(dx), bool(d_pointwise)
    if launches.tapped and by_input and by_weights and launches.stride > 1:
        launches.stage(True, False)  # chunks are of the input
        launches.stage(False, True)  # of the output
    elif launches.tapped:
        launches.stage(by_input, by_weights)
    elif by_input:
        launches.input_gradient()
    if by_weights and not launches.tapped:
        launches.pointwise_gradient()
    if sum(row[2] * row[3] for row in plan.sums) > _WAITING:
        add_up(plan)


def pool_alike(plan: Launches, i: Instruction) -> Any:
    """Return what pool3x3_backward must share."""
    (g,), _, _, (x,), _, _ = i.reads
    return x.shape, steps(x), plan.half(x), steps(g), i.numbers


def _refs(pool: Instruction) -> list[Ref]:
    """Return what the row of a pool names, but averages and where maxima came from, which are dense."""
    return [ref for k in (0, 2, 3, 4) for ref in pool.reads[k]]


def _pool_row(plan: Launches, pool: Instruction, u: int) -> tuple[Any, ...]:
    """Return a pool's row, but dx; a convolution makes averages and where maxima came from itself."""
    (gradient,), (most, mean), coef, (x,), base, _ = pool.reads
    alone = pool.writes[0][0].slot not in plan.bases
    weight = plan.skips.get(base[0]) if base else None
    return (
        plan.places[most.slot]._replace(unit=u) if alone else None, at(gradient, u), at(x, u),
        at(dense(mean), u) if alone else None,
        *(at(c, u) for c in coef), maybe([dense(b) for b in base if weight is None], u),
        None if weight is None else at(weight),
    )  # fmt: skip


def _reach(stride: int) -> int:
    """Return how many windows reach a pixel in a row."""
    return 3 if stride == 1 else 2


def pool(plan: Launches, group: Group) -> None:
    """Add the backward of pools, but those whose gradient a convolution makes."""
    group = [i for i in group if i.writes[0][0].slot not in plan.bases]
    if not group:
        return
    (g,), _, _, (x,), _, _ = group[0].reads
    (_, H, W, C), (_, Ho, Wo, _) = x.shape, g.shape
    refs = [ref for i in group for ref in (*_refs(i), *i.writes[0])]
    u = units(C, *(n for ref in refs for n in (ref.offset, *steps(ref))))
    rows = [(*_pool_row(plan, i, u), at(dense(i.writes[0][0]), u)) for i in group]
    stride, (BP, BC) = group[0].numbers[0], images.tile_of(C, plan.itemsize)
    pixels = pixels_of(x)
    plan.add(
        Work(
            grouped_conv_backward.grouped_pool_gradient_kernel,
            (cdiv(pixels, BP), cdiv(C, BC), len(rows)),
            rows,
            (scaled(steps(g), u), scaled(steps(x), u), pixels, H, W, Ho, Wo, C // u),
            dict(X_HALF=plan.half(x), STRIDE=stride, UNIT=u, BP=BP, BC=BC, num_warps=4, many_registers=True),
            12 * len(rows) * pixels * C * _reach(stride) ** 2,
        ),
    )
