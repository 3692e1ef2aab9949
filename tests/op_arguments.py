"""How the arguments of the fused operators are sampled, a class an operator, and the calls made of them."""

from dataclasses import dataclass

import torch
from op_calls import Call
from op_sampler import Sampler
from torch import Tensor

from dartsfast.ops.rnn_node import weight_parts


@dataclass(frozen=True)
class Alphas:
    shapes: tuple[tuple[int, int], ...]
    scale: float = 1

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler = Sampler(dtype)
        alphas = [sampler.tensor(*shape) * self.scale for shape in self.shapes]
        d = [sampler.tensor(*shape[::-1]).T for shape in self.shapes]
        return [
            ("alpha_softmax", (alphas,)),
            ("alpha_softmax_backward", ([alpha.softmax(1) for alpha in alphas], d)),
        ]


@dataclass(frozen=True)
class Conv:
    N: int
    H: int
    W: int
    Ci: int
    Co: int
    stride: int
    taps: tuple[tuple[int, int], ...]  # kernel and dilation of every branch; none: two branches without
    norm: bool
    relu: bool
    layout: str = "plain"

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler, branches = Sampler(dtype, self.layout), len(self.taps) or 2
        x, base = (sampler.image(self.N, self.H, self.W, self.Ci) for _ in range(2))
        forward = (
            x,
            sampler.norm(self.Ci) if self.norm else None,
            [sampler.weight(self.Ci, 1, kernel, kernel) for kernel, _ in self.taps],
            [sampler.weight(self.Co, self.Ci, 1, 1) for _ in range(branches)],
            [dilation for _, dilation in self.taps],
            self.stride,
            self.relu,
        )
        out = self.N, -(-self.H // self.stride), -(-self.W // self.stride), self.Co
        g, z = ([sampler.image(*out) for _ in range(branches)] for _ in range(2))
        coef = sampler.tensor(branches, 4, self.Co)
        return [
            ("branch_conv", forward),
            ("branch_conv_backward", (g, [], None, *forward, None, True, True)),
            ("branch_conv_backward", (g, z, coef, *forward, base, True, False)),
            ("branch_conv_backward", (g, z, coef, *forward, None, False, True)),
            ("branch_conv_backward", (g, z, coef, *forward, None, False, False)),
        ]


@dataclass(frozen=True)
class Pool:
    N: int
    H: int
    W: int
    C: int
    stride: int
    layout: str = "plain"

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler = Sampler(dtype, self.layout)
        x, base = (sampler.image(self.N, self.H, self.W, self.C) for _ in range(2))
        out = self.N, -(-self.H // self.stride), -(-self.W // self.stride), self.C
        g, z = ([sampler.image(*out) for _ in range(2)] for _ in range(2))
        coef = sampler.tensor(2, 4, self.C)
        return [
            ("pool3x3", (x, self.stride)),
            ("pool3x3_backward", (g, [], None, x, self.stride, None)),
            ("pool3x3_backward", (g, z, coef, x, self.stride, base)),
        ]


@dataclass(frozen=True)
class Mix:
    N: int
    H: int
    W: int
    C: int
    branches: int
    base: bool
    layout: str = "plain"

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler = Sampler(dtype, self.layout)
        z = [sampler.image(self.N, self.H, self.W, self.C) for _ in range(self.branches)]
        g, base = (sampler.image(self.N, self.H, self.W, self.C) for _ in range(2))
        mean, rstd = sampler.norm(self.branches, self.C).unbind(1)
        weights = sampler.tensor(self.branches)
        return [
            ("mixed_sum", (z, mean, rstd, weights, base if self.base else None)),
            ("mixed_sum_backward", (g, z, mean, rstd)),
        ]


@dataclass(frozen=True)
class Node:
    P: int
    B: int
    H: int
    layout: str = "plain"
    scale: float = 1

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler = Sampler(dtype)
        gates, states, base = (self.rows(sampler, self.P, C) for C in (2 * self.H, self.H, self.H))
        out, g = (self.rows(sampler, 1, self.H)[0] for _ in range(2))
        weights, variance = sampler.weight(self.P, 4), sampler.tensor(self.H).square()
        norm = torch.stack([sampler.tensor(self.H), variance])
        forward = (gates * self.scale, states, weights)
        return [
            ("rnn_node", (*forward, None, 1e-5)),
            ("rnn_node", (*forward, norm, 1e-3)),
            ("rnn_node_backward", (g, out, variance, *forward, 1e-5, True, None)),
            ("rnn_node_backward", (g, out, variance, *forward, 1e-3, False, base)),
        ]

    def rows(self, sampler: Sampler, P: int, C: int) -> Tensor:
        """Return [P, B, C] in this case's layout."""
        if self.layout == "transposed":
            return sampler.tensor(P, C, self.B).transpose(1, 2)
        if self.layout == "slice":
            return sampler.tensor(P, self.B, C + 3)[..., 1 : C + 1]
        if self.layout == "expanded":
            return sampler.tensor(1, self.B, C).expand(P, self.B, C)
        return sampler.tensor(P, self.B, C)


@dataclass(frozen=True)
class Step:
    """A node within a time step, in memory that is given."""

    P: int
    B: int
    H: int
    layout: str = "plain"

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler, P, B, H = Sampler(dtype), self.P, self.B, self.H
        rows = Node(P, B, H, self.layout).rows
        node = rows(sampler, P, 2 * H), rows(sampler, P, H), sampler.weight(P, 4)
        g, through, of_mean, out, mask = (rows(sampler, 1, H)[0] for _ in range(5))
        stats = torch.stack([sampler.tensor(H), sampler.tensor(H).square()])
        filled, masked, mean = (sampler.tensor(B, H) for _ in range(3))
        d_weights = sampler.tensor(weight_parts(H), P + 2, 4)[:, 1 : P + 1]
        forward = filled, masked
        backward = sampler.tensor(P, B, 2 * H), sampler.tensor(P, B, H), d_weights, g, through
        made = out, stats[1], *node
        return [
            ("rnn_node_", (*forward, [], stats, *node, mask, True, 1e-5)),
            ("rnn_node_", (*forward, [mean], stats, *node, mask, False, 1e-3)),
            ("rnn_node_", (*forward, [mean], stats, *node, None, True, 1e-5)),
            ("rnn_node_backward_", (*backward, of_mean, *made, mask, 1e-5, True, False)),
            ("rnn_node_backward_", (*backward, None, *made, mask, 1e-3, False, True)),
            ("rnn_node_backward_", (*backward, None, *made, None, 1e-5, True, False)),
        ]


@dataclass(frozen=True)
class Vectors:
    n: int

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler = Sampler(dtype)
        w, w0, v, buffer = (sampler.tensor(self.n) for _ in range(4))
        norm, scale = v.norm(), sampler.tensor().abs()
        return [
            ("fd_norm", (v,)),
            ("fd_perturb_", (w, w0, v, norm, 0.01, 1.0)),
            ("fd_perturb_", (w, w0, v, norm, 0.5, -1.0)),
            ("fd_virtual_step_", (w, v, buffer, scale, 0.025, 0.9, 3e-4)),
            ("fd_virtual_step_", (w, v, None, scale, 20.0, 0.9, 0.3)),
            ("fd_quotient", (w0, v, norm, 0.01)),
        ]


@dataclass(frozen=True)
class Product:
    M: int
    K: int
    N: int
    layout: str = "plain"

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler = Sampler(dtype)
        out = sampler.tensor(self.M, self.N + 3)[:, 1 : self.N + 1]
        a, b = self.matrix(sampler, self.M, self.K), self.matrix(sampler, self.K, self.N)
        return [("gemm_", (torch.full_like(out, torch.nan), a, b, False)), ("gemm_", (out, a, b, True))]

    def matrix(self, sampler: Sampler, rows: int, columns: int) -> Tensor:
        """Return [rows, columns] in this case's layout."""
        if self.layout == "transposed":
            return sampler.tensor(columns, rows).T
        if self.layout == "strided":
            return sampler.tensor(2 * rows, 3 * columns)[::2, 1::3]
        if self.layout == "expanded":
            return sampler.tensor(1, columns).expand(rows, columns)
        return sampler.tensor(rows, columns)


@dataclass(frozen=True)
class Locked:
    T: int
    N: int
    H: int
    V: int
    keep: float = 0.3
    layout: str = "plain"

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler = Sampler(dtype)
        kept = torch.rand(self.N, self.H, generator=sampler.generator) < self.keep
        x, mask = self.inputs(sampler), kept.to(dtype) / self.keep
        if self.layout != "plain":
            mask = mask.T.contiguous().T
        g, weight = sampler.tensor(self.N, self.T, self.V), sampler.tensor(self.H, self.V)
        # What is dropped is not read.
        hidden = torch.where(kept, x, torch.nan)
        d_x = torch.full_like(x, torch.nan)
        return [
            ("locked_linear_", (torch.full_like(g, torch.nan), hidden, mask, weight)),
            ("locked_linear_input_gradient_", (d_x, g, mask, weight)),
            ("locked_linear_weight_gradient_", (sampler.tensor(self.H, self.V), g, hidden, mask)),
        ]

    def inputs(self, sampler: Sampler) -> Tensor:
        """Return [T, N, H] in this case's layout."""
        if self.layout == "slice":
            return sampler.tensor(self.T, 2 * self.N + 1, self.H + 3)[:, 1 : self.N + 1, 2 : self.H + 2]
        if self.layout == "transposed":
            return sampler.tensor(self.H, self.N, self.T).permute(2, 1, 0)
        return sampler.tensor(self.T, self.N, self.H)


@dataclass(frozen=True)
class Classes:
    R: int
    V: int
    scale: float = 1

    def calls(self, dtype=torch.float32) -> list[Call]:
        sampler = Sampler(dtype)
        logits, bias = self.scale * sampler.tensor(self.R, self.V), sampler.tensor(self.V)
        labels = torch.randint(self.V, (self.R,), generator=sampler.generator)
        return [
            ("cross_entropy_", (logits, None, labels, 1.0)),
            ("cross_entropy_", (logits, bias, labels, 1 / self.R)),
        ]


@dataclass(frozen=True)
class Norms:
    norms: int
    C: int
    momentum: float | None = 0.1
    moved: bool = True
    pixels: int = 50

    def calls(self, dtype=torch.float32) -> list[Call]:
        dtype = torch.promote_types(dtype, torch.float32)  # of arithmetic, not of storage
        sampler = Sampler(dtype)
        stats, norm = sampler.tensor(self.norms, 2, self.C).abs(), sampler.norm(self.norms, self.C)
        moved = self.norms if self.moved else 0
        running = [[sampler.tensor(self.C).abs() for _ in range(moved)] for _ in range(2)]
        batches = [torch.tensor(7 * i) for i in range(moved)]
        own = (sampler.tensor(self.norms) > 0).to(dtype)
        weights = sampler.tensor(2 * self.norms)[::2]
        shared, means = (
            sampler.tensor(1, self.C).expand(self.norms, -1),
            sampler.tensor(self.norms, 2, self.C),
        )
        return [
            ("norm_stats_", (stats, *running, batches, self.momentum, 1e-5, self.pixels)),
            ("norm_stats_backward", (shared, sampler.tensor(self.norms, self.C), norm, weights, own)),
            ("norm_stats_backward", (*means.unbind(1), norm[..., : self.C], None, torch.ones_like(own))),
        ]
