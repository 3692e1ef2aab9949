"""Search networks as they are written elsewhere: stock modules, mixed by code that knows nothing of kernels.

Candidate operations are those of every descendant of DARTS; what differs is who sums them, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Separable(nn.Module):
    """(relu, depthwise, pointwise, norm) twice, or once and dilated."""

    def __init__(self, C: int, size: int, stride: int, *, dilation: int = 1, twice: bool = True) -> None:
        super().__init__()
        pad = dilation * (size // 2)
        layers: list[nn.Module] = []
        for step in (stride, 1)[: 1 + twice]:
            layers += [
                nn.ReLU(),
                nn.Conv2d(C, C, size, step, pad, dilation=dilation, groups=C, bias=False),
                nn.Conv2d(C, C, 1, bias=False),
                nn.BatchNorm2d(C, affine=False),
            ]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply them."""
        return self.body(x)


class Halve(nn.Module):
    """Two strided pointwise convolutions side by side, one shifted by a pixel."""

    def __init__(self, C_in: int, C: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(C_in, C // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(C_in, C // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(C, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the image."""
        x = self.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


class Same(nn.Module):
    """The input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return it."""
        return x


class Nothing(nn.Module):
    """Zeros."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.step = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return x.mul(0.0) if self.step == 1 else x[:, :, :: self.step, :: self.step].mul(0.0)


def relu_conv_norm(C_in: int, C: int, size: int = 1) -> nn.Module:
    """Return relu, a dense convolution and a norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C_in, C, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(C, affine=False),
    )


def pooling(kind: str, C: int, stride: int) -> nn.Module:
    """Return a pool and a norm."""
    pool: nn.Module = nn.MaxPool2d(3, stride, 1)
    if kind == "average":
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    return nn.Sequential(pool, nn.BatchNorm2d(C, affine=False))


def eight(C: int, stride: int) -> list[nn.Module]:
    """Return the operations of an edge."""
    return [
        Nothing(stride),
        pooling("maximum", C, stride),
        pooling("average", C, stride),
        Same() if stride == 1 else Halve(C, C),
        Separable(C, 3, stride),
        Separable(C, 5, stride),
        Separable(C, 3, stride, dilation=2, twice=False),
        Separable(C, 5, stride, dilation=2, twice=False),
    ]


class Mixed(nn.Module):
    """The sum of an edge's operations."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(eight(C, stride))

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        """Mix them."""
        ops: Any = self.ops
        return sum(w * op(x) for w, op in zip(weights, ops, strict=False))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of groups."""
    N, C, H, W = x.data.size()
    return x.view(N, groups, C // groups, H, W).transpose(1, 2).contiguous().view(N, -1, H, W)


class Partial(nn.Module):
    """Operations on a quarter of the channels; the others pass, pooled where the stride is 2."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(eight(C // 4, stride))
        self.stride = stride
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        """Mix the first quarter."""
        mixed, rest = x[:, : x.shape[1] // 4, :, :], x[:, x.shape[1] // 4 :, :, :]
        found = sum(w * op(mixed) for w, op in zip(weights, self.ops, strict=True))
        passed = rest if self.stride == 1 else self.pool(rest)
        return shuffled(torch.cat([found, passed], dim=1), 4)


class Cell(nn.Module):
    """Two preprocessed inputs, and nodes that sum edges; ``mixed(C, stride)`` builds an edge."""

    def __init__(
        self, mixed: Callable[[int, int], nn.Module], nodes: int, C_pp: int, C_p: int, C: int,
        reduction: bool, reduced: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.reduction = reduction
        self.pre0 = Halve(C_pp, C) if reduced else relu_conv_norm(C_pp, C)
        self.pre1 = relu_conv_norm(C_p, C)
        self.nodes = nodes
        self.edges = nn.ModuleList(
            mixed(C, 2 if reduction and j < 2 else 1) for i in range(nodes) for j in range(2 + i)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Any, betas: Any = None) -> Tensor:
        """Return the nodes side by side."""
        states = [self.pre0(s0), self.pre1(s1)]
        start = 0
        for _ in range(self.nodes):
            found = (self.edges[start + j](h, weights[start + j]) for j, h in enumerate(states))
            if betas is not None:
                found = (betas[start + j] * out for j, out in enumerate(found))
            states.append(sum(found))
            start += len(states) - 1
        return torch.cat(states[-self.nodes :], dim=1)


class Stacked(nn.Module):
    """A network of cells, reductions at 1/3 and 2/3, with alphas (and betas) as plain tensors."""

    def __init__(
        self,
        mixed: Callable[[int, int], nn.Module] = Mixed,
        *,
        C: int = 4,
        layers: int = 3,
        nodes: int = 2,
        ops: int = 8,
        betas: bool = False,
        rows: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__()
        self.nodes, self.betas = nodes, betas
        self.rows = rows or (lambda alphas: F.softmax(alphas, dim=-1))
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
        C_pp = C_p = 3 * C
        reduced = False
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C *= 1 + reduction
            self.cells.append(Cell(mixed, nodes, C_pp, C_p, C, reduction, reduced))
            reduced, C_pp, C_p = reduction, C_p, nodes * C
        self.classifier = nn.Linear(C_p, 10)
        edges = sum(2 + i for i in range(nodes))
        self.arch = [(1e-1 * torch.randn(edges, ops)).requires_grad_() for _ in range(2)]
        self.arch += [(1e-1 * torch.randn(edges)).requires_grad_() for _ in range(2 * betas)]

    def doubled(self) -> Stacked:
        """Compute in float64."""
        self.arch = [a.detach().double().requires_grad_() for a in self.arch]
        return self.double()

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits."""
        s0 = s1 = self.stem(images)
        for cell in self.cells:
            reduction = bool(cell.reduction)
            weights = self.rows(self.arch[reduction])
            betas = self._betas(self.arch[2 + reduction]) if self.betas else None
            s0, s1 = s1, cell(s0, s1, weights, betas)
        return self.classifier(s1.mean((2, 3)))

    def _betas(self, betas: Tensor) -> Tensor:
        """Normalise the weights of edges node by node."""
        found = betas.split([2 + i for i in range(self.nodes)])
        return torch.cat([F.softmax(part, dim=-1) for part in found])


class DenseCell(nn.Module):
    """A cell of three nodes, every one the sum of all before, five operations an edge."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict()
        for to in range(1, 4):
            for of in range(to):
                pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
                ops = [Nothing(1), Same(), relu_conv_norm(C, C), relu_conv_norm(C, C, 3), pool]
                self.edges[f"{to}<-{of}"] = nn.ModuleList(ops)

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return the last node."""
        k = 0
        nodes: list[Any] = [x]
        for to in range(1, 4):
            arrived: list[Any] = []
            for of in range(to):
                ops: Any = self.edges[f"{to}<-{of}"]
                arrived.append(sum(op(nodes[of]) * w for op, w in zip(ops, weights[k], strict=True)))
                k += 1
            nodes.append(sum(arrived))
        return nodes[-1]


class Dense(nn.Module):
    """Stages of such cells, with residual blocks of stride 2 between them."""

    def __init__(self, C: int = 4, cells: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.stages = nn.ModuleList()
        for stage in range(3):
            blocks: list[nn.Module] = []
            if stage:
                blocks.append(nn.Sequential(nn.ReLU(), nn.Conv2d(C, 2 * C, 3, 2, 1), nn.BatchNorm2d(2 * C)))
                C *= 2
            self.stages.append(nn.ModuleList([*blocks, *(DenseCell(C) for _ in range(cells))]))
        self.classifier = nn.Linear(C, 10)
        self.arch = [(1e-1 * torch.randn(6, 5)).requires_grad_()]

    def doubled(self) -> Dense:
        """Compute in float64."""
        self.arch = [a.detach().double().requires_grad_() for a in self.arch]
        return self.double()

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits."""
        x = self.stem(images)
        weights = F.softmax(self.arch[0], dim=-1)
        stages: Any = self.stages
        for stage in stages:
            for block in stage:
                x = block(x, weights) if isinstance(block, DenseCell) else block(x)
        return self.classifier(x.mean((2, 3)))
