"""The CNN's operators, each beside stock PyTorch functions doing the same.

Stock peers run on [N, C, H, W], as the published networks do, and on the same in channels_last memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.op_cases.case import (
    OURS,
    STOCK,
    STOCK_LAST,
    WITH_SUMS,
    Case,
    Peers,
    Timed,
    as_in_a_node,
    drawing,
    gradients,
    kernels,
    no_grad,
)
from dartsfast.ops import alpha_softmax, branch_conv, mixed_sum, pool3x3

MEMORY_FORMATS = {STOCK: torch.contiguous_format, STOCK_LAST: torch.channels_last}
EPSILON = 1e-5


def cnn_cases(batch: int, *, quick: bool = False) -> list[Case]:
    """Return the cases on the three shapes of the search network on 32x32 images, or on a tiny one."""
    shapes = [(4, 8)] if quick else [(16, 32), (32, 16), (64, 8)]
    cases = [alpha_case()]
    for C, size in shapes:
        cases += [branch_case(batch, C, size, K, D) for K in (3, 5) for D in (1, 2)]
    cases += [pool_case(batch, C, size) for C, size in shapes]
    return cases + [mixed_case(batch, C, size) for C, size in shapes]


def alpha_case(edges: int = 14, operations: int = 8) -> Case:
    """Two alphas of the CNN; so small that a launch is all it costs."""

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        alphas = [draw(edges, operations).requires_grad_() for _ in range(2)]
        g = [draw(edges, operations) for _ in range(2)]

        def softmaxes() -> list[Tensor]:
            return [F.softmax(alpha, -1) for alpha in alphas]

        forward = {
            OURS: Timed(no_grad(lambda: alpha_softmax(alphas)), list),
            STOCK: Timed(no_grad(softmaxes), list),
        }
        ours, stock = alpha_softmax(alphas), softmaxes()
        backward = {
            OURS: Timed(lambda: torch.autograd.grad(ours, alphas, g, retain_graph=True), list),
            STOCK: Timed(lambda: torch.autograd.grad(stock, alphas, g, retain_graph=True), list),
        }
        return {"forward": forward, "backward": backward}

    return Case("alpha_softmax", f"2 x [{edges}, {operations}]", build)


def branch_case(batch: int, C: int, size: int, K: int, D: int) -> Case:
    """One branch, relu -> depthwise KxK dilated by D -> pointwise, with its batch statistics."""
    pixels = batch * size * size
    depthwise, pointwise = 2 * pixels * C * K * K, 2 * pixels * C * C
    image = 4 * pixels * C

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        inputs = [draw(batch, C, size, size), draw(C, 1, K, K), draw(C, C, 1, 1), draw(batch, C, size, size)]
        ours = _branch_ours(*inputs, D=D)
        stocks = {name: _branch_stock(*inputs, D=D, format=f) for name, f in MEMORY_FORMATS.items()}
        return {name: {**ours[name], **{s: stocks[s][name] for s in stocks}} for name in ours}

    return Case(
        "branch_conv",
        f"C={C}, {size}x{size}, {K}x{K}" + (f", dilation {D}" if D > 1 else ""),
        build,
        flops={
            "forward": depthwise + pointwise,
            "backward": 3 * depthwise + 2 * pointwise,  # dartsfast computes the depthwise output again
            "input gradient": depthwise + pointwise,
        },
        bytes={"forward": 2 * image, "backward": 4 * image, "input gradient": 4 * image},
    )


def _branch_ours(x: Tensor, depthwise: Tensor, pointwise: Tensor, g: Tensor, *, D: int) -> dict[str, Peers]:
    x, g = nhwc(x), nhwc(g)
    call = as_in_a_node(lambda: kernels.branch_conv(x, None, [depthwise], [pointwise], [D], 1, True))
    z, stats = branch_conv(x, [pointwise], [depthwise], [D])
    mean, rstd = stats[0, 0], torch.rsqrt(stats[0, 1] + EPSILON)

    def coefficients() -> Tensor:
        _, means = kernels.mixed_sum_backward(g, [z[0]], mean[None], rstd[None])
        return torch.stack([means[0], mean, means[1] * rstd, rstd])[None]

    def backward(coef: Tensor, weights: bool) -> Any:
        return kernels.branch_conv_backward(
            [g], [z[0]], coef, x, None, [depthwise], [pointwise], [D], 1, True, None, True, weights
        )

    def timed(weights: bool) -> Peers:
        view = lambda out: [out[0], *out[1], *out[2]]  # noqa: E731
        return {
            OURS: Timed(as_in_a_node(lambda: backward(coef, weights)), view),
            WITH_SUMS: Timed(as_in_a_node(lambda: backward(coefficients(), weights)), view),
        }

    coef = coefficients()
    return {
        "forward": {OURS: Timed(call, lambda out: [out[0][0], out[1][0, 0], out[1][0, 1]])},
        "backward": timed(True),
        "input gradient": timed(False),
    }


def _branch_stock(
    x: Tensor, depthwise: Tensor, pointwise: Tensor, g: Tensor, *, D: int, format: torch.memory_format
) -> dict[str, Timed]:
    x = x.clone(memory_format=format).requires_grad_()
    g = g.clone(memory_format=format)
    weights = [w.clone(memory_format=format).requires_grad_() for w in (depthwise, pointwise)]

    def convolved() -> Tensor:
        pad = D * (depthwise.shape[-1] - 1) // 2
        y = F.conv2d(F.relu(x), weights[0], padding=pad, dilation=D, groups=x.shape[1])
        return F.conv2d(y, weights[1])

    def forward() -> tuple[Tensor, ...]:
        z = convolved()
        return z, *_batch_statistics(z)

    out = F.batch_norm(convolved(), None, None, training=True, eps=EPSILON)
    return {
        "forward": Timed(no_grad(forward), lambda out: [nhwc(out[0]), *out[1:]]),
        "backward": gradients(out, [x, *weights], g, lambda d: [nhwc(d[0]), *d[1:]]),
        "input gradient": gradients(out, [x], g, lambda d: [nhwc(d[0])]),
    }


def pool_case(batch: int, C: int, size: int) -> Case:
    """Maximum and average of a source, with their batch statistics."""
    image = 4 * batch * size * size * C

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        x, *g = [draw(batch, C, size, size) for _ in range(3)]
        stocks = {name: _pool_stock(x, g, f) for name, f in MEMORY_FORMATS.items()}
        ours = _pool_ours(nhwc(x), [nhwc(one) for one in g])
        return {name: {**ours[name], **{s: stocks[s][name] for s in stocks}} for name in ours}

    return Case(
        "pool3x3",
        f"C={C}, {size}x{size}",
        build,
        bytes={"forward": 3 * image, "backward": 6 * image},
    )


def _pool_ours(x: Tensor, g: list[Tensor]) -> dict[str, Peers]:
    z, stats = pool3x3(x)
    mean, rstd = stats[:, 0], torch.rsqrt(stats[:, 1] + EPSILON)

    def coefficients() -> Tensor:
        rows = []
        for half in range(2):
            one = slice(half, half + 1)
            _, means = kernels.mixed_sum_backward(g[half], [z[half]], mean[one], rstd[one])
            rows.append(torch.stack([means[0], mean[half], means[1] * rstd[half], rstd[half]]))
        return torch.stack(rows)

    def backward(coef: Tensor) -> Tensor:
        return kernels.pool3x3_backward(g, list(z), coef, x, 1, None)

    coef = coefficients()
    return {
        "forward": {
            OURS: Timed(
                as_in_a_node(lambda: kernels.pool3x3(x, 1)), lambda out: [*out[0], *out[1].flatten(0, 1)]
            )
        },
        "backward": {
            OURS: Timed(as_in_a_node(lambda: backward(coef)), lambda out: [out]),
            WITH_SUMS: Timed(as_in_a_node(lambda: backward(coefficients())), lambda out: [out]),
        },
    }


def _pool_stock(x: Tensor, g: list[Tensor], format: torch.memory_format) -> dict[str, Timed]:
    x = x.clone(memory_format=format).requires_grad_()
    given = [one.clone(memory_format=format) for one in g]

    def pools() -> list[Tensor]:
        return [F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)]

    def forward() -> list[tuple[Tensor, ...]]:
        return [(z, *_batch_statistics(z)) for z in pools()]

    out = [F.batch_norm(z, None, None, training=True, eps=EPSILON) for z in pools()]
    return {
        "forward": Timed(
            no_grad(forward),
            lambda out: [*(nhwc(z) for z, _, _ in out), *(s for _, *stats in out for s in stats)],
        ),
        "backward": gradients(out, [x], given, lambda d: [nhwc(d[0])]),
    }


def mixed_case(batch: int, C: int, size: int, branches: int = 7) -> Case:
    """The weighted sum of an edge's normalised branches; statistics are given."""
    image = 4 * batch * size * size * C

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        z = [draw(batch, C, size, size) for _ in range(branches)]
        g, weights = draw(batch, C, size, size), draw(branches).softmax(0)
        mean, variance = draw(branches, C), draw(branches, C).square() + 0.5
        stocks = {name: _mixed_stock(z, mean, variance, weights, g, f) for name, f in MEMORY_FORMATS.items()}
        rstd = torch.rsqrt(variance + EPSILON)
        ours = _mixed_ours([nhwc(one) for one in z], mean, rstd, weights, nhwc(g))
        return {name: {OURS: ours[name], **{s: stocks[s][name] for s in stocks}} for name in ours}

    return Case(
        "mixed_sum",
        f"C={C}, {size}x{size}, {branches} branches",
        build,
        bytes={
            "forward": (branches + 1) * image,
            "backward": (2 * branches + 1) * image,
            "weight gradient": (branches + 1) * image,
        },
    )


def _mixed_ours(z: list[Tensor], mean: Tensor, rstd: Tensor, weights: Tensor, g: Tensor) -> dict[str, Timed]:
    inputs = [one.clone().requires_grad_() for one in [weights, *z]]
    out = mixed_sum(inputs[1:], mean, rstd, inputs[0])
    return {
        "forward": Timed(lambda: mixed_sum(z, mean, rstd, weights), lambda out: [out]),
        "backward": gradients(out, inputs, g, list),
        "weight gradient": Timed(lambda: kernels.mixed_sum_backward(g, z, mean, rstd), lambda out: [out[0]]),
    }


def _mixed_stock(
    z: list[Tensor],
    mean: Tensor,
    variance: Tensor,
    weights: Tensor,
    g: Tensor,
    format: torch.memory_format,
) -> dict[str, Timed]:
    z = [one.clone(memory_format=format).requires_grad_() for one in z]
    weights = weights.clone().requires_grad_()
    g = g.clone(memory_format=format)

    def forward() -> Tensor:
        terms = zip(weights, z, mean, variance, strict=True)
        return sum(w * F.batch_norm(one, m, v, eps=EPSILON) for w, one, m, v in terms)

    out = forward()
    return {
        "forward": Timed(no_grad(forward), lambda out: [nhwc(out)]),
        "backward": gradients(out, [weights, *z], g, lambda d: [d[0], *(nhwc(one) for one in d[1:])]),
        "weight gradient": gradients(out, [weights], g, list),
    }


def _batch_statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance, by the kernel that batch norm takes them with."""
    return torch.batch_norm_update_stats(z, None, None, 0.0)


def nhwc(x: Tensor) -> Tensor:
    """Return x [N, C, H, W] as contiguous [N, H, W, C]."""
    return x.permute(0, 2, 3, 1).contiguous()
