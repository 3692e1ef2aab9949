"""``branch_conv_backward``: the gradients of x and of the weights, each only if asked for.

dz of a branch is formed from g, z and coef in registers wherever it is read, and the depthwise output t is
computed again, so neither is stored. dt = dz times the pointwise weight is: the depthwise adjoint and the
depthwise weight gradient read it K * K times. Weight gradients are summed by at most ``SPLITS`` programs a
block of weights, in an order that only the shapes decide, then by an ordered pass.
"""

from __future__ import annotations

import triton
import triton.language as tl
from dartsfast.kernels.branch_conv import PRECISION, crowded, norm_rows, place, tile
from dartsfast.kernels.branch_gradients import (
    depthwise_adjoint,
    depthwise_gradient,
    pointwise_adjoint,
    pointwise_gradient,
    through_source,
)
from dartsfast.kernels.images import scaled, strides, unit
from dartsfast.kernels.launch import accumulator, all_dense, dense, launch
from dartsfast.kernels.reduce import COLUMNS, PARTS, ordered_sum, sum_kernel
from torch import Tensor

SPLITS = 64
ROWS = 2
"""Pixels of a split by the narrower side of a weight, at least: else partial sums are as large as images."""
TAPS = 1024
"""Numbers of a block where there is no matrix product: 8 a thread."""
CHUNK = 4
"""Such blocks that a depthwise weight's gradient sums up by lanes before a tree over these."""


@triton.jit
def pointwise_adjoint_kernel(
    g, g_strides, z, z_strides, coef, pointwise, dt, pixels, Ho, Wo, Ci, Co, PRECISION: tl.constexpr,
    UI: tl.constexpr, UO: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Fill dt, a tuple of [pixels, Ci]; grid (tiles * branches, blocks of Ci).

    As in all kernels here Ci and the strides of x, norm and base come in units of UI, Co and the strides of
    g and z in units of UO.
    """
    Ci, Co, g_strides, z_strides = Ci * UI, Co * UO, scaled(g_strides, UO), scaled(z_strides, UO)
    BRANCHES: tl.constexpr = len(pointwise)
    p = tl.program_id(0) // BRANCHES * BP + tl.arange(0, BP)
    n, y, column = place(p, Ho, Wo)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    for b in tl.static_range(BRANCHES):
        if tl.program_id(0) % BRANCHES == b:
            total = pointwise_adjoint(
                g[b], g_strides, z[b], z_strides, None if coef is None else coef + b * 4 * Co, Co,
                pointwise[b], n, y, column, p < pixels, c, Ci, Co, PRECISION, BO, ACC,
            )  # fmt: skip
            tl.store(dt[b] + p[:, None] * Ci + c[None, :], total, (p < pixels)[:, None] & (c < Ci)[None, :])


# Of channels of one unit the compiler would make a constant, unroll, and take half as many registers again.
@triton.jit(do_not_specialize=["Ci", "Co"])
def input_gradient_kernel(
    g, g_strides, z, z_strides, coef, x, x_strides, norm, norm_stride, depthwise, pointwise, dt,
    base, base_strides, dx, partial, pixels, H, W, Ho, Wo, Ci, Co,
    K: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    UI: tl.constexpr, UO: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Fill dx [pixels, Ci] and, with norm, partial [tiles, 2, Ci]: the sums of s and of s * norm(x)."""
    Ci, Co, g_strides, z_strides = Ci * UI, Co * UO, scaled(g_strides, UO), scaled(z_strides, UO)
    x_strides, norm_stride = scaled(x_strides, UI), norm_stride * UI
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    there = p < pixels
    n, y, column = place(p, H, W)
    for b in tl.static_range(len(pointwise)):
        if depthwise is None:
            taken = there & (y % STRIDE == 0) & (column % STRIDE == 0)
            part = pointwise_adjoint(
                g[b], g_strides, z[b], z_strides, None if coef is None else coef + b * 4 * Co, Co,
                pointwise[b], n, y // STRIDE, column // STRIDE, taken, c, Ci, Co, PRECISION, BO, ACC,
            )  # fmt: skip
            if STRIDE > 1:  # a weight that is not finite has no part in pixels that a stride skips
                part = tl.where(taken[:, None], part, 0.0)
        else:
            part = depthwise_adjoint(
                dt[b], Ci, depthwise[b], Ho, Wo, n, y, column, there, c, Ci, K[b], D[b], STRIDE, ACC
            )
        if b == 0:
            s = part
        else:
            s += part
    inside = there[:, None] & (c < Ci)[None, :]
    if RELU or norm is not None:
        to = partial + tl.program_id(0) * 2 * Ci
        s = through_source(s, x, x_strides, norm, norm_stride, to, n, y, column, inside, c, Ci, RELU, ACC)
    if base is not None:
        base_strides = scaled(base_strides, UI)
        at = (n * base_strides[0] + y * base_strides[1] + column * base_strides[2])[:, None] + c[None, :]
        s = tl.load(base + at, inside, 0.0).to(ACC) + s
    tl.store(dx + p[:, None] * Ci + c[None, :], s.to(dx.dtype.element_ty), inside)


@triton.jit
def pointwise_gradient_kernel(
    g, g_strides, z, z_strides, coef, x, x_strides, norm, norm_stride, depthwise, partial,
    pixels, span, H, W, Ho, Wo, Ci, Co,
    K: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    UI: tl.constexpr, UO: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Fill partial, a tuple of [splits, Co, Ci]: dz^T t of ``span`` pixels a split.

    Grid (splits * branches, blocks of Co, blocks of Ci).
    """
    Ci, Co, g_strides, z_strides = Ci * UI, Co * UO, scaled(g_strides, UO), scaled(z_strides, UO)
    x_strides, norm_stride = scaled(x_strides, UI), norm_stride * UI
    BRANCHES: tl.constexpr = len(partial)
    split = tl.program_id(0) // BRANCHES
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    for b in tl.static_range(BRANCHES):
        if tl.program_id(0) % BRANCHES == b:
            total = pointwise_gradient(
                tl.zeros([BO, BC], ACC), g[b], g_strides, z[b], z_strides,
                None if coef is None else coef + b * 4 * Co, Co, x, x_strides, norm, norm_stride,
                None if depthwise is None else depthwise[b], K[b], D[b],
                split * span, tl.minimum(split * span + span, pixels), H, W, Ho, Wo, o, c, Ci, Co,
                STRIDE, RELU, PRECISION, BP, ACC,
            )  # fmt: skip
            to = partial[b] + (split * Co + o[:, None]) * Ci + c[None, :]
            tl.store(to, total, (o < Co)[:, None] & (c < Ci)[None, :])


@triton.jit
def depthwise_gradient_kernel(
    dt, x, strides, norm, norm_stride, partial, pixels, span, H, W, Ho, Wo, Ci,
    K: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr,
    UI: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, CHUNK: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Fill partial, a tuple of [splits, Ci, K * K]; grid (splits * branches, blocks of Ci).

    Chunks of CHUNK pixels are added one after the other. A program goes through the pixels of one again for
    every block of taps: they stay in the first cache.
    """
    Ci, strides, norm_stride = Ci * UI, scaled(strides, UI), norm_stride * UI
    BRANCHES: tl.constexpr = len(partial)
    split = tl.program_id(0) // BRANCHES
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mean, rstd = norm_rows(norm, c, Ci, norm_stride, ACC)
    for b in tl.static_range(BRANCHES):
        if tl.program_id(0) % BRANCHES == b:
            end = tl.minimum(split * span + span, pixels)
            for begin in range(split * span, end, CHUNK):
                depthwise_gradient(
                    dt[b], Ci, x, strides, norm, mean, rstd, partial[b] + split * Ci * (K[b] * K[b]),
                    begin > split * span, begin, tl.minimum(begin + CHUNK, end), H, W, Ho, Wo, c, Ci,
                    K[b], D[b], STRIDE, RELU, BT, BP, ACC,
                )  # fmt: skip
                tl.debug_barrier()  # what is added to was stored by other threads


@triton.jit(do_not_specialize=["one"])
def weight_sums_kernel(
    partial, out, sizes, parts, one, PARTS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr
):
    """Add every partial [parts, size] of a tuple over its parts; grid (blocks of the largest, tuple)."""
    for i in tl.static_range(len(partial)):
        if tl.program_id(1) == i:
            sum_kernel(partial[i], out[i], parts, sizes[i], one, 1, PARTS, COLUMNS, ACC)


def branch_conv_backward(
    out: tuple[Tensor, list[Tensor], list[Tensor], Tensor],
    g: list[Tensor],
    z: list[Tensor],
    coef: Tensor | None,
    x: Tensor,
    norm: Tensor | None,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilation: list[int],
    stride: int,
    relu: bool,
    base: Tensor | None,
    input_grad: bool,
    weight_grads: bool,
) -> None:
    """Fill dx [N, H, W, Ci], d_depthwise, d_pointwise and means [2, Ci], or what is asked for of them.

    See ``dartsfast.ops.branch_conv``; g and z [N, Ho, Wo, Co] a branch, coef [branches, 4, Co].
    """
    if not (input_grad or weight_grads):
        return
    dx, d_depthwise, d_pointwise, means = out
    gradient = Gradient(means, g, z, coef, x, norm, depthwise, pointwise, dilation, stride, relu)
    if input_grad:
        gradient.by_input(base, dx, means)
    if weight_grads:
        gradient.by_weights((*d_pointwise, *d_depthwise))


def span_of(pixels: int, BP: int, Ci: int, Co: int) -> int:
    """Return the pixels of a split, whole tiles of BP."""
    least = max(triton.cdiv(pixels, SPLITS), ROWS * min(Ci, Co))
    return triton.cdiv(min(least, pixels), BP) * BP


class Gradient:
    """What the kernels share: arguments, sizes of blocks and dt; scratch has the dtype of ``means``."""

    def __init__(
        self,
        means: Tensor,
        g: list[Tensor],
        z: list[Tensor],
        coef: Tensor | None,
        x: Tensor,
        norm: Tensor | None,
        depthwise: list[Tensor],
        pointwise: list[Tensor],
        dilation: list[int],
        stride: int,
        relu: bool,
    ) -> None:
        (self.N, Ho, Wo, self.Co), (_, H, W, self.Ci) = g[0].shape, x.shape
        self.branches, self.pixels = len(g), self.N * Ho * Wo
        self.scratch = means.new_empty
        g = all_dense(g)
        z = g if coef is None else all_dense(z)  # without coef z is not read
        coef = None if coef is None else coef.contiguous()  # [branches, 4, Co]
        x, norm = dense(x), None if norm is None else dense(norm)
        ui, uo = unit(x) if norm is None else unit(x, norm), unit(g[0], z[0])
        self.dz = tuple(g), strides(g[0], uo), tuple(z), strides(z[0], uo), coef
        self.source = x, strides(x, ui), norm, 0 if norm is None else norm.stride(0) // ui
        self.sizes = H, W, Ho, Wo, self.Ci // ui
        self.units = {"UI": ui, "UO": uo}
        self.depthwise = tuple(w.contiguous() for w in depthwise) or None
        self.pointwise = tuple(w.contiguous() for w in pointwise)
        self.taps = {
            "K": tuple(w.shape[-1] for w in depthwise) or (1,) * self.branches,
            "D": tuple(dilation) or (1,) * self.branches,
            "STRIDE": stride,
        }
        self.options = {"PRECISION": PRECISION, "ACC": accumulator(x)}
        self.tile = tile(self.Ci, self.Co, bool(depthwise), x.element_size() == 8)
        self.blocks = triton.cdiv(self.Ci, self.tile["BC"])
        # There is no product by BO either: it is the same for all, so that it makes no further kernels.
        self.tap_tile = {**self.tile, "BP": TAPS // self.tile["BC"], "BO": 16, "num_warps": 4}
        self.stride, self.relu = stride, relu
        self.dt = self._pointwise_adjoint() if depthwise else None

    def _pointwise_adjoint(self) -> tuple[Tensor, ...]:
        """Return dt of every branch, [pixels, Ci]."""
        _, _, Ho, Wo, Ci = self.sizes
        dt = self.scratch([self.branches, self.pixels, self.Ci]).unbind()
        launch(
            pointwise_adjoint_kernel,
            (triton.cdiv(self.pixels, self.tile["BP"]) * self.branches, self.blocks),
            *self.dz, self.pointwise, dt, self.pixels, Ho, Wo, Ci, self.Co // self.units["UO"],
            many_registers=self.Ci > 64, **self.options, **self.units, **self.tile,
        )  # fmt: skip
        return dt

    def by_input(self, base: Tensor | None, dx: Tensor, means: Tensor) -> None:
        """Fill dx [N, H, W, Ci] and, with norm, means [2, Ci]."""
        *dz, coef = self.dz
        shape = self.tile
        if self.depthwise:  # dz is in dt, and another kernel for every sort of coef would be the same
            shape, coef = self.tap_tile, None
        pixels = self.N * self.sizes[0] * self.sizes[1]
        tiles = triton.cdiv(pixels, shape["BP"])
        u = self.units["UI"]
        if base is not None:
            base = dense(base)
            base = base if unit(base) % u == 0 else base.contiguous()
        partial = self.scratch([tiles, *means.shape])
        launch(
            input_gradient_kernel, (tiles, self.blocks),
            *dz, coef, *self.source, self.depthwise, self.pointwise, self.dt,
            base, None if base is None else strides(base, u), dx, partial, pixels, *self.sizes,
            self.Co // self.units["UO"], **self.taps, RELU=self.relu, many_registers=not self.depthwise,
            **self.options, **self.units, **shape,
        )  # fmt: skip
        if means.numel():
            ordered_sum(partial, means, pixels)

    def by_weights(self, out: tuple[Tensor, ...]) -> None:
        """Fill the gradients of all pointwise [Co, Ci, 1, 1], then all depthwise weights [Ci, 1, K, K]."""
        span = span_of(self.pixels, self.tile["BP"], self.Ci, self.Co)
        splits = triton.cdiv(self.pixels, span)
        partial = tuple(self.scratch([splits, w.numel()]) for w in out)
        launch(
            pointwise_gradient_kernel,
            (splits * self.branches, triton.cdiv(self.Co, self.tile["BO"]), self.blocks),
            *self.dz, *self.source, self.depthwise, partial[: self.branches], self.pixels, span,
            *self.sizes, self.Co // self.units["UO"], **self.taps, RELU=self.relu, many_registers=True,
            **self.options, **self.units, **self.tile,
        )  # fmt: skip
        if self.depthwise:
            shape = {name: value for name, value in self.tap_tile.items() if name != "BO"}
            size = self.source[0].element_size()
            launch(
                depthwise_gradient_kernel, (splits * self.branches, self.blocks),
                self.dt, *self.source, partial[self.branches :], self.pixels, span, *self.sizes,
                **self.taps, RELU=self.relu, UI=self.units["UI"], BT=4, CHUNK=CHUNK * shape["BP"],
                ACC=self.options["ACC"],
                many_registers=crowded(self.Ci, size) or size == 2 or self.stride > 1, **shape,
            )  # fmt: skip
        sizes = tuple(w.numel() for w in out)
        launch(
            weight_sums_kernel, (triton.cdiv(max(sizes), COLUMNS), len(out)), partial, out, sizes, splits, 1,
            PARTS=PARTS, COLUMNS=COLUMNS, ACC=self.options["ACC"],
        )  # fmt: skip
