"""``branch_conv`` in its documented order of operations; see ``csrc/cpu/branch_conv.kernel.h``."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.oracle.arithmetic import Chunks, apply_coef, fma, moments, relu, tree_sum


def branch_conv(
    x: Tensor,
    norm: Tensor | None,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilation: list[int],
    stride: int,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """Return z [branches, N, Ho, Wo, Co] and stats [branches, 2, Co]."""
    source = _source(x, norm, relu)
    z = []
    for b, weight in enumerate(pointwise):
        t = _depthwise(source, depthwise[b], dilation[b], stride) if depthwise else _strided(source, stride)
        z.append(_chain(t, weight[:, :, 0, 0].T))
    return torch.stack(z), torch.stack([moments(image) for image in z])


def branch_conv_backward(
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
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Return the gradients of norm(x), of the weights, and the means that give the gradient of norm.

    The means [2, Ci] are those of the gradient s of norm(x) and of s * norm(x). What is not asked for
    is empty.
    """
    source = _source(x, norm, relu)
    s = torch.zeros_like(source)
    d_depthwise, d_pointwise = [], []
    for b, weight in enumerate(pointwise):
        dz = apply_coef(g[b], z[b] if z else None, None if coef is None else coef[b])
        dt = _chain(dz, weight[:, :, 0, 0])
        if depthwise:
            taps, D = depthwise[b], dilation[b]
            adjoint = _depthwise_adjoint(dt, taps, D, stride, s.shape[1:3])
            s = s + adjoint if b else adjoint
            t = _depthwise(source, taps, D, stride)
            if weight_grads:
                d_depthwise.append(_depthwise_gradient(source, dt, taps, D, stride))
        else:
            s[:, ::stride, ::stride] += dt
            t = _strided(source, stride)
        if weight_grads:
            d_pointwise.append(_pixel_chain(dz[..., :, None], t[..., None, :])[:, :, None, None])
    if not input_grad:
        return x.new_empty([0, *x.shape[1:]]), d_depthwise, d_pointwise, x.new_empty([0, x.shape[3]])
    if relu:
        s = torch.where(source > 0, s, torch.zeros_like(s))
    means = x.new_empty([0, x.shape[3]]) if norm is None else _norm_means(s, source)
    return s if base is None else base + s, d_depthwise, d_pointwise, means


def _source(x: Tensor, norm: Tensor | None, with_relu: bool) -> Tensor:
    """Return what the convolutions read."""
    v = x if norm is None else (x - norm[0]) * norm[1]
    return relu(v) if with_relu else v.contiguous()


def _strided(source: Tensor, stride: int) -> Tensor:
    return source[:, ::stride, ::stride]


def _taps(source: Tensor, K: int, D: int, stride: int) -> list[Tensor]:
    """Return what every tap reads, row by row: [N, Ho, Wo, C] each, 0 outside the image."""
    P = D * (K - 1) // 2
    rows, columns = ((size - 1) // stride * stride + 1 for size in source.shape[1:3])
    padded = F.pad(source, [0, 0, P, P, P, P])
    return [
        padded[:, y * D : y * D + rows : stride, x * D : x * D + columns : stride]
        for y in range(K)
        for x in range(K)
    ]


def _depthwise(source: Tensor, weight: Tensor, D: int, stride: int) -> Tensor:
    taps = _taps(source, weight.shape[-1], D, stride)
    total = torch.zeros_like(taps[0])
    for tap, w in zip(taps, weight.flatten(1).T, strict=True):
        total = fma(tap, w, total)
    return total


def _depthwise_adjoint(d: Tensor, weight: Tensor, D: int, stride: int, shape: torch.Size) -> Tensor:
    """Return the depthwise adjoint of ``d``, [N, *shape, C]: a chain over taps for every pixel.

    Pixels of one parity share their taps: those that a stride of 2 did not skip.
    """
    K, (H, W) = weight.shape[-1], shape
    P = D * (K - 1) // 2
    Q = P // stride + 1
    padded = F.pad(d, [0, 0, Q, Q, Q, Q])
    out = d.new_empty([d.shape[0], H, W, d.shape[3]])
    for py, px in itertools.product(range(stride), repeat=2):
        part = out[:, py::stride, px::stride]
        chain = torch.zeros_like(part)
        for (ky, kx), w in zip(itertools.product(range(K), repeat=2), weight.flatten(1).T, strict=True):
            y, x = py + P - ky * D, px + P - kx * D
            if y % stride or x % stride:
                continue
            y, x = y // stride + Q, x // stride + Q
            chain = fma(padded[:, y : y + part.shape[1], x : x + part.shape[2]], w, chain)
        part.copy_(chain)
    return out


def _depthwise_gradient(source: Tensor, dt: Tensor, weight: Tensor, D: int, stride: int) -> Tensor:
    K = weight.shape[-1]
    taps = torch.stack(_taps(source, K, D, stride), -1)
    return _pixel_chain(taps, dt[..., None]).reshape(weight.shape)


def _chain(t: Tensor, weight: Tensor) -> Tensor:
    """Return t [..., A] times weight [A, B] as a chain over A, ascending."""
    total = t.new_zeros([*t.shape[:-1], weight.shape[1]])
    for a, w in zip(t.split(1, -1), weight, strict=True):
        total = fma(a, w, total)
    return total


def _pixel_chain(a: Tensor, b: Tensor) -> Tensor:
    """Sum a * b [N, H, W, ...] over pixels: a chain an image, then images pairwise."""
    a, b = a.flatten(1, 2), b.flatten(1, 2)
    total = a.new_zeros(torch.broadcast_shapes(a[:, 0].shape, b[:, 0].shape))
    for u, v in zip(a.unbind(1), b.unbind(1), strict=True):
        total = fma(u, v, total)
    return tree_sum(total)


def _norm_means(s: Tensor, source: Tensor) -> Tensor:
    chunks = Chunks(*s.shape[:3])
    tiles = chunks.split(s)
    # Where relu cut, s is 0: what the convolutions read serves for norm(x).
    sums = tree_sum(torch.stack([chunks.sum(tiles), chunks.dot(tiles, chunks.split(source))], 1))
    return sums / torch.tensor(s.shape[0] * s.shape[1] * s.shape[2], dtype=s.dtype)
