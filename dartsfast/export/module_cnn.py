"""The network of a CNN cell as a plain Python file: text of modules, put together for the cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dartsfast.cnn.genotypes import Genotype
from dartsfast.export.text import check_known, listed

IMPORTS = "import torch\nfrom torch import Tensor, nn\n"
IMPORTS_OF_TRAINED = f"from pathlib import Path\n\n{IMPORTS}"


class Op(NamedTuple):
    """An operation in the file: how it is built, with a place for its stride, and the class that it needs."""

    build: str
    needs: str = ""


OPS = {
    "none": Op("Zero({})", "Zero"),
    "avg_pool_3x3": Op("nn.AvgPool2d(3, {}, padding=1, count_include_pad=False)"),
    "max_pool_3x3": Op("nn.MaxPool2d(3, {}, padding=1)"),
    "sep_conv_3x3": Op("SepConv(C, 3, {})", "SepConv"),
    "sep_conv_5x5": Op("SepConv(C, 5, {})", "SepConv"),
    "sep_conv_7x7": Op("SepConv(C, 7, {})", "SepConv"),
    "dil_conv_3x3": Op("DilConv(C, 3, {})", "DilConv"),
    "dil_conv_5x5": Op("DilConv(C, 5, {})", "DilConv"),
    "conv_7x1_1x7": Op("Conv7x1(C, {})", "Conv7x1"),
    "nor_conv_1x1": Op("Conv(C, 1, {})", "Conv"),
    "nor_conv_3x3": Op("Conv(C, 3, {})", "Conv"),
}
SKIP = {1: Op("nn.Identity()"), 2: Op("FactorizedReduce(C, C)")}

# Every file has these; of the classes below those that its cells need.
COMMON = '''
class ReLUConvBN(nn.Module):
    """ReLU, pointwise convolution, batch norm."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, 1, bias=False),
            nn.BatchNorm2d(C_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(nn.Module):
    """Halve the image: two strided pointwise convolutions, one shifted by a pixel."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        halves = [self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])]
        return self.bn(torch.cat(halves, dim=1))
'''
CLASSES = {
    "Zero": '''
class Zero(nn.Module):
    """Zeros of the strided shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)
''',
    "SepConv": '''
class SepConv(nn.Module):
    """Twice: ReLU, depthwise and pointwise convolution, batch norm."""

    def __init__(self, C: int, kernel: int, stride: int) -> None:
        super().__init__()
        pad = kernel // 2
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel, stride, pad, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C),
            nn.ReLU(),
            nn.Conv2d(C, C, kernel, 1, pad, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)
''',
    "DilConv": '''
class DilConv(nn.Module):
    """ReLU, dilated depthwise and pointwise convolution, batch norm."""

    def __init__(self, C: int, kernel: int, stride: int) -> None:
        super().__init__()
        pad = kernel - 1
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel, stride, pad, dilation=2, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)
''',
    "Conv7x1": '''
class Conv7x1(nn.Sequential):
    """ReLU, convolutions along rows and along columns, batch norm."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(C, C, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(C, C, (7, 1), (stride, 1), (3, 0), bias=False),
            nn.BatchNorm2d(C),
        )
''',
    "Conv": '''
class Conv(nn.Module):
    """ReLU, convolution, batch norm."""

    def __init__(self, C: int, size: int, stride: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(C),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)
''',
}
CELL = '''
class {name}(nn.Module):
    """The {kind} cell; ``halve`` where the cell before has halved the image."""

    multiplier = {multiplier}

    def __init__(self, C_prev_prev: int, C_prev: int, C: int, halve: bool) -> None:
        super().__init__()
        first = FactorizedReduce if halve else ReLUConvBN
        self.preprocess0 = first(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        self._ops = nn.ModuleList(
            [
{ops}
            ]
        )

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        op = self._ops
        s0, s1 = self.preprocess0(s0), self.preprocess1(s1)
{nodes}
{outputs}
        return torch.cat(outputs, dim=1)
'''
NETWORK = '''
class Network(nn.Module):
    """Images [N, 3, H, W] to logits [N, num_classes]; H and W are multiples of {multiple}.

    C: channels of the first cells, doubled by each of the two reduction cells.
    layers: number of cells.
    """

    def __init__(self, C: int, num_classes: int, layers: int) -> None:
        super().__init__()
{stem}
        self.cells = nn.ModuleList()
        halved = {halved}
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            cell = ReductionCell if reduction else NormalCell
            self.cells.append(cell(C_prev_prev, C_prev, C, halved))
            halved = reduction
            C_prev_prev, C_prev = C_prev, cell.multiplier * C
        self.global_pooling = {pooling}
        self.classifier = nn.Linear(C_prev, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        {states}
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.classifier(self.global_pooling(s1).flatten(1))
'''


# What the two networks differ in.
STEM_CIFAR = """
        C_prev_prev = C_prev = 3 * C
        self.stem = nn.Sequential(
            nn.Conv2d(3, C_prev, 3, padding=1, bias=False),
            nn.BatchNorm2d(C_prev),
        )
"""
STEM_IMAGENET = """
        C_prev_prev = C_prev = C
        self.stem0 = nn.Sequential(
            nn.Conv2d(3, C // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(),
            nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        self.stem1 = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
"""
NETWORKS = {
    "cifar": {
        "multiple": "4", "stem": STEM_CIFAR.strip("\n"), "halved": "False",
        "pooling": "nn.AdaptiveAvgPool2d(1)", "states": "s0 = s1 = self.stem(images)",
    },
    "imagenet": {
        "multiple": "32, from 224 to 416", "stem": STEM_IMAGENET.strip("\n"), "halved": "True",
        "pooling": "nn.AvgPool2d(7)",
        "states": "s0 = self.stem0(images)\n        s1 = self.stem1(s0)",
    },
}  # fmt: skip


def classes(genotype: Genotype, images: str) -> list[str]:
    """Return the text of the classes that the network of ``genotype`` for ``images``, a name of
    :data:`NETWORKS`, needs, in their order in a file."""
    cells = (genotype.normal, genotype.reduce)
    check_known("operation", (name for cell in cells for name, _ in cell), {*OPS, "skip_connect"})
    needed = {OPS[name].needs for cell in cells for name, _ in cell if name in OPS}
    return [
        COMMON,
        *(text for name, text in CLASSES.items() if name in needed),
        _cell("NormalCell", "normal", genotype.normal, genotype.normal_concat),
        _cell("ReductionCell", "reduction", genotype.reduce, genotype.reduce_concat),
        NETWORK.format(**NETWORKS[images]),
    ]


def _cell(name: str, kind: str, edges: Sequence[tuple[str, int]], concat: Sequence[int]) -> str:
    strides = [2 if kind == "reduction" and source < 2 else 1 for _, source in edges]
    ops = [
        (SKIP[stride] if op == "skip_connect" else OPS[op]).build.format(stride)
        for (op, _), stride in zip(edges, strides, strict=True)
    ]
    nodes = [
        f"        s{2 + k // 2} = op[{k}](s{edges[k][1]}) + op[{k + 1}](s{edges[k + 1][1]})"
        for k in range(0, len(edges), 2)
    ]
    return CELL.format(
        name=name,
        kind=kind,
        multiplier=len(concat),
        ops="\n".join(f"                {op}," for op in ops),
        nodes="\n".join(nodes),
        outputs=listed("outputs", (f"s{i}" for i in concat), 8),
    )
