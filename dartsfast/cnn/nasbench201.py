"""The network of NAS-Bench-201 (Dong and Yang, "NAS-Bench-201: Extending the scope of reproducible neural
architecture search", ICLR 2020, section 2.1).

A cell has four nodes: node 0 is its input, every other the sum of an operation of each node before it, the
last its output. All cells have the same architecture. N of them follow a convolution 3x3, and N more each of
two residual blocks of stride 2, which double the channels; then come batch norm, ReLU, pooling, classifier.

The network itself is :class:`dartsfast.cnn.model_search.Network` with this space's ``primitives``; here is
what it is made of. While it is searched the norms of candidate operations have no affine, and pools no norm.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from dartsfast.backends import resolve_backend
from dartsfast.cnn.genotypes import Architecture
from dartsfast.cnn.operations import ReLUConvBN, build_op
from dartsfast.cnn.spaces import NODES, OneCell
from dartsfast.errors import InputError
from dartsfast.modules.arch import check_finite
from dartsfast.modules.recompute import applied

STAGES = 3
MEMORY_MODES = ("store", "recompute")


class MixedOp(nn.Module):
    """The mixed operation of an edge, sum of w_k * op_k(x): no norm after pools."""

    def __init__(self, C: int, primitives: Sequence[str]) -> None:
        super().__init__()
        self._ops = nn.ModuleList(build_op(primitive, C, 1, False) for primitive in primitives)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Mix ``x`` [N, C, H, W] with ``weights`` [ops]."""
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class ResidualBlock(nn.Module):
    """Two convolutions 3x3, the first of stride 2, beside a mean pool 2x2 and a convolution 1x1."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(C_in, C_out, 3, 2, 1)
        self.conv_b = ReLUConvBN(C_out, C_out, 3, 1, 1)
        self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(C_in, C_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H/2, W/2].

        Raises:
            InputError: an odd height or width.
        """
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise InputError(
                f"a residual block cannot halve a {x.shape[-2]}x{x.shape[-1]} image: height and width must "
                "be even. Pad or crop the input to multiples of 4"
            )
        return self.downsample(x) + self.conv_b(self.conv_a(x))


class Cell(nn.Module):
    """A cell, after the residual block before it where its input has other channels."""

    reduction = False

    def __init__(self, C_in: int, C: int, space: OneCell, backend: str, memory: str) -> None:
        super().__init__()
        self._backend, self._memory = backend, memory
        self.preprocess = nn.Identity() if C_in == C else ResidualBlock(C_in, C)
        self._ops = nn.ModuleList(MixedOp(C, row) for row in space.cell)

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """Map the last cell's output ``s1``, with ``weights`` [6, ops], to [N, C, H, W]; not ``s0``."""
        memory = self._memory
        if resolve_backend(self._backend, s1.device, dtype=weights.dtype) != "reference":
            memory = "store"  # the kernels of the edges know what to keep
        nodes, edges = [self.preprocess(s1)], zip(self._ops, weights, strict=True)
        for node in range(1, NODES):
            into = zip(itertools.islice(edges, node), nodes, strict=True)
            nodes.append(sum(applied(edge, memory, x, row) for (edge, row), x in into))
        return nodes[-1]


class Layers(NamedTuple):
    """What a network is made of.

    Attributes:
        stem: from images [N, 3, H, W].
        cells: one after the other.
        pooling: from the last cell's output, to [N, features, 1, 1].
        features: of the classifier.
    """

    stem: nn.Sequential
    cells: nn.ModuleList
    pooling: nn.Module
    features: int


def layers(C: int, cells: int, space: OneCell, backend: str, memory: str) -> Layers:
    """Return the layers of a search network, of ``cells`` cells a stage.

    Raises:
        InputError: a memory mode that cells of DARTS alone have.
    """
    if memory not in MEMORY_MODES:
        raise InputError(
            f"memory={memory!r} is of the cells of DARTS: choose one of {', '.join(MEMORY_MODES)}"
        )
    stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
    widths = [C * 2**stage for stage in range(STAGES) for _ in range(cells)]
    found = nn.ModuleList(
        Cell(before, width, space, backend, memory) for before, width in itertools.pairwise([C, *widths])
    )
    last = widths[-1]
    pooling = nn.Sequential(nn.BatchNorm2d(last), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return Layers(stem, found, pooling, last)


def strongest(rows: Tensor, space: OneCell) -> Architecture:
    """Return the cell of the operations that ``rows`` [6, ops] weigh most, of which ``none`` may be one.

    Raises:
        InputError: a weight is not finite.
    """
    table = rows.detach().cpu().numpy()
    check_finite(table)
    names = iter(row[k] for row, k in zip(space.cell, table.argmax(1), strict=True))
    return Architecture.of([(next(names), source) for source in range(node)] for node in range(1, NODES))
