"""Candidate operations of the CNN cells on stock modules (paper section 3.1.1).

``OPS[name](C, stride, affine)`` builds an operation from [N, C, H, W] to [N, C, H/stride, W/stride].
A search space of one's own adds its constructors to :data:`OPS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dartsfast.errors import InputError
from dartsfast.modules.alone import Operation
from dartsfast.modules.plain import served


@served
class ReLUConvBN(Operation):
    """ReLU, convolution, batch norm: [N, C_in, H, W] to [N, C_out, H', W']."""

    def __init__(
        self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, affine: bool = True
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C_in, C_out, kernel_size, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in order."""
        if not torch.jit.is_scripting():
            self.note(x)
        return self.op(x)


@served
class DilConv(Operation):
    """ReLU, dilated depthwise and pointwise convolution, batch norm."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(
                C_in,
                C_in,
                kernel_size=kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=C_in,
                bias=False,
            ),
            nn.Conv2d(C_in, C_out, kernel_size=1, padding=0, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the four in order."""
        if not torch.jit.is_scripting():
            self.note(x)
        return self.op(x)


@served
class SepConv(Operation):
    """Twice (ReLU, depthwise, pointwise, batch norm); the first carries the stride."""

    def __init__(
        self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, affine: bool = True
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C_in, C_in, kernel_size, stride=stride, padding=padding, groups=C_in, bias=False),
            nn.Conv2d(C_in, C_in, kernel_size=1, padding=0, bias=False),
            nn.BatchNorm2d(C_in, affine=affine),
            nn.ReLU(inplace=False),
            nn.Conv2d(C_in, C_in, kernel_size, stride=1, padding=padding, groups=C_in, bias=False),
            nn.Conv2d(C_in, C_out, kernel_size=1, padding=0, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the eight in order."""
        if not torch.jit.is_scripting():
            self.note(x)
        return self.op(x)


@served
class Identity(nn.Module):
    """The input itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


@served
class Zero(nn.Module):
    """The ``none`` operation: zeros of the strided shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros, [N, C, H/stride, W/stride]."""
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class Noise(nn.Module):
    """Standard normal numbers in place of the image, of its strided shape (Zela et al., 2020, space S4)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return noise of torch's generator, [N, C, H/stride, W/stride]."""
        # Not randn_like, whose numbers go by the layout in memory.
        return torch.randn(x[:, :, :: self.stride, :: self.stride].shape, dtype=x.dtype, device=x.device)


@served
class FactorizedReduce(Operation):
    """Halve the image without losing pixels: two strided 1x1 convolutions, one of them shifted by a pixel.

    Raises:
        InputError: ``C_out`` is odd, or the image has an odd height or width.
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__()
        if C_out % 2:
            raise InputError(f"FactorizedReduce needs an even number of output channels, got {C_out}")
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, padding=0, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, padding=0, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H/2, W/2]."""
        self.note(x)
        self.check(*x.shape[-2:])
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))

    @staticmethod
    def check(height: int, width: int) -> None:
        """Raise InputError for an image that cannot be halved."""
        if height % 2 or width % 2:
            raise InputError(
                f"FactorizedReduce cannot halve a {height}x{width} image: height and width must be even. "
                "Pad or crop the input so that each reduction cell finds an even size (e.g. a multiple of 4)"
            )


def _conv_7x1_1x7(C: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(inplace=False),
        nn.Conv2d(C, C, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
        nn.Conv2d(C, C, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
        nn.BatchNorm2d(C, affine=affine),
    )


OPS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda C, stride, affine: Zero(stride),
    "avg_pool_3x3": lambda C, stride, affine: nn.AvgPool2d(
        3, stride=stride, padding=1, count_include_pad=False
    ),
    "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride=stride, padding=1),
    "skip_connect": lambda C, stride, affine: (
        Identity() if stride == 1 else FactorizedReduce(C, C, affine=affine)
    ),
    "sep_conv_3x3": lambda C, stride, affine: SepConv(C, C, 3, stride, 1, affine=affine),
    "sep_conv_5x5": lambda C, stride, affine: SepConv(C, C, 5, stride, 2, affine=affine),
    "sep_conv_7x7": lambda C, stride, affine: SepConv(C, C, 7, stride, 3, affine=affine),
    "dil_conv_3x3": lambda C, stride, affine: DilConv(C, C, 3, stride, 2, 2, affine=affine),
    "dil_conv_5x5": lambda C, stride, affine: DilConv(C, C, 5, stride, 4, 2, affine=affine),
    "conv_7x1_1x7": _conv_7x1_1x7,
    "nor_conv_1x1": lambda C, stride, affine: ReLUConvBN(C, C, 1, stride, 0, affine=affine),
    "nor_conv_3x3": lambda C, stride, affine: ReLUConvBN(C, C, 3, stride, 1, affine=affine),
    "noise": lambda C, stride, affine: Noise(stride),
}


def build_op(name: str, C: int, stride: int, affine: bool) -> nn.Module:
    """Build the operation ``name`` of :data:`OPS`.

    Raises:
        InputError: no such operation.
    """
    if name not in OPS:
        raise InputError(
            f"unknown primitive {name!r}: known are {', '.join(OPS)}; "
            "add your own with dartsfast.cnn.operations.OPS[name] = lambda C, stride, affine: module"
        )
    return OPS[name](C, stride, affine)
