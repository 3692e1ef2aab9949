"""The networks of a discrete cell, to train from scratch (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dartsfast.cnn.genotypes import Genotype
from dartsfast.cnn.operations import (  # noqa: F401 - old scripts take all of them from here
    OPS,
    DilConv,
    FactorizedReduce,
    Identity,
    ReLUConvBN,
    SepConv,
    Zero,
    build_op,
)
from dartsfast.cnn.utils import drop_path
from dartsfast.errors import InputError
from dartsfast.genotypes import CNN, as_genotype
from dartsfast.modules.alone import adopt


class Cell(nn.Module):
    """One cell of a genotype: two operations a node, their sum its value.

    Raises:
        InputError: ``genotype``, in any form of :func:`dartsfast.genotypes.as_genotype`, is none of a CNN.
    """

    def __init__(
        self,
        genotype: Genotype,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
    ) -> None:
        super().__init__()
        genotype = as_genotype(genotype, CNN)  # names are looked up as the operations are built
        self.preprocess0: nn.Module
        if reduction_prev:
            self.preprocess0 = FactorizedReduce(C_prev_prev, C)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0)
        op_names, indices = zip(*(genotype.reduce if reduction else genotype.normal), strict=True)
        concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self._compile(C, op_names, indices, concat, reduction)
        adopt(self)

    def _compile(
        self, C: int, op_names: Sequence[str], indices: Sequence[int], concat: Sequence[int], reduction: bool
    ) -> None:
        # A method, as in the original, for those who override it.
        self._steps = len(op_names) // 2
        self._concat = list(concat)
        self._indices = list(indices)
        self._ops = nn.ModuleList(
            build_op(name, C, 2 if reduction and index < 2 else 1, True)
            for name, index in zip(op_names, indices, strict=True)
        )
        self.multiplier = len(concat)

    def forward(self, s0: Tensor, s1: Tensor, drop_prob: float) -> Tensor:
        """Map the outputs of the two cells before to [N, multiplier*C, H, W]; paths drop in training."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for i in range(self._steps):
            pair = [self._edge(2 * i, states, drop_prob), self._edge(2 * i + 1, states, drop_prob)]
            states.append(pair[0] + pair[1])
        return torch.cat([states[i] for i in self._concat], dim=1)

    def _edge(self, number: int, states: Sequence[Tensor], drop_prob: float) -> Tensor:
        op = self._ops[number]
        h = op(states[self._indices[number]])
        if self.training and drop_prob > 0.0 and not isinstance(op, Identity):
            h = drop_path(h, drop_prob)
        return h


class AuxiliaryHeadCIFAR(nn.Module):
    """A second classifier at two thirds of the depth, for images of 8x8 to 10x10 there."""

    def __init__(self, C: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.AvgPool2d(5, stride=3, padding=0, count_include_pad=False),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W], H and W 8 to 10, to logits [N, classes]."""
        if not all(8 <= n <= 10 for n in x.shape[-2:]):
            height, width = (4 * n for n in x.shape[-2:])
            raise InputError(
                f"the auxiliary head takes images of 32x32 to 40x40, got {height}x{width}; "
                "build the network without it"
            )
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class AuxiliaryHeadImageNet(nn.Module):
    """A second classifier at two thirds of the depth, for images of 7x7 there.

    As in the original, and in the paper's experiments, no batch norm follows the last convolution.
    """

    def __init__(self, C: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.AvgPool2d(5, stride=2, padding=0, count_include_pad=False),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, 7, 7] to logits [N, classes]."""
        x = self.features(x)
        x = x.view(x.size(0), -1)
        if x.size(1) != self.classifier.in_features:
            raise InputError("the auxiliary head takes 224x224 images; build the network without it")
        return self.classifier(x)


def _build_cells(
    genotype: Genotype, layers: int, channels: tuple[int, int, int], reduction_prev: bool, auxiliary: bool
) -> tuple[nn.ModuleList, int, int]:
    """Stack ``layers`` cells; return them, the channels at two thirds of the depth, and the last ones."""
    if auxiliary and layers < 2:
        raise InputError(
            f"the auxiliary head follows the second of two reduction cells, and there are {layers} layers: "
            "use 2 or more, or build the network without it"
        )
    C_prev_prev, C_prev, C_curr = channels
    cells, C_to_auxiliary = nn.ModuleList(), 0
    for i in range(layers):
        reduction = i in (layers // 3, 2 * layers // 3)
        if reduction:
            C_curr *= 2
        cell = Cell(genotype, C_prev_prev, C_prev, C_curr, reduction, reduction_prev)
        reduction_prev = reduction
        cells.append(cell)
        C_prev_prev, C_prev = C_prev, cell.multiplier * C_curr
        if i == 2 * layers // 3:
            C_to_auxiliary = C_prev
    return cells, C_to_auxiliary, C_prev


class NetworkCIFAR(nn.Module):
    """The CIFAR network of a genotype.

    The training loop sets ``drop_path_prob`` (0 at first), e.g. rising over the epochs.

    Args:
        C: channels of the first cells.
        num_classes: classes of the classifier.
        layers: number of cells.
        auxiliary: with a second classifier, active in training.
        genotype: the cells, in any form that :func:`dartsfast.genotypes.as_genotype` takes.

    Raises:
        InputError: a genotype that does not fit, or too few layers for the second classifier.
    """

    def __init__(self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype) -> None:
        super().__init__()
        self._layers = layers
        self._auxiliary = auxiliary
        self.drop_path_prob = 0.0
        C_curr = 3 * C
        self.stem = nn.Sequential(nn.Conv2d(3, C_curr, 3, padding=1, bias=False), nn.BatchNorm2d(C_curr))
        self.cells, C_to_auxiliary, C_last = _build_cells(
            genotype, layers, (C_curr, C_curr, C), False, auxiliary
        )
        if auxiliary:
            self.auxiliary_head = AuxiliaryHeadCIFAR(C_to_auxiliary, num_classes)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_last, num_classes)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images [N, 3, H, W] to logits [N, classes] and the auxiliary logits or None."""
        logits_aux = None
        s0 = s1 = self.stem(input)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i == 2 * self._layers // 3 and self._auxiliary and self.training:
                logits_aux = self.auxiliary_head(s1)
        out = self.global_pooling(s1)
        return self.classifier(out.view(out.size(0), -1)), logits_aux


class NetworkImageNet(nn.Module):
    """The ImageNet network of a genotype (images 224x224); arguments as :class:`NetworkCIFAR`."""

    def __init__(self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype) -> None:
        super().__init__()
        self._layers = layers
        self._auxiliary = auxiliary
        self.drop_path_prob = 0.0
        self.stem0 = nn.Sequential(
            nn.Conv2d(3, C // 2, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        self.stem1 = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        self.cells, C_to_auxiliary, C_last = _build_cells(genotype, layers, (C, C, C), True, auxiliary)
        if auxiliary:
            self.auxiliary_head = AuxiliaryHeadImageNet(C_to_auxiliary, num_classes)
        self.global_pooling = nn.AvgPool2d(7)
        self.classifier = nn.Linear(C_last, num_classes)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images [N, 3, 224, 224] to logits [N, classes] and the auxiliary logits or None."""
        logits_aux = None
        s0 = self.stem0(input)
        s1 = self.stem1(s0)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i == 2 * self._layers // 3 and self._auxiliary and self.training:
                logits_aux = self.auxiliary_head(s1)
        out = self.global_pooling(s1)
        return self.classifier(out.view(out.size(0), -1)), logits_aux
