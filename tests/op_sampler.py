"""Random tensors for the operators' cases, in all the layouts that images and weights may have."""

import torch
from torch import Tensor


class Sampler:
    """Random tensors of one dtype, images in one layout."""

    def __init__(self, dtype=torch.float32, layout="plain", seed=0):
        self.dtype, self.layout = dtype, layout
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, generator=self.generator)

    def image(self, N: int, H: int, W: int, C: int) -> Tensor:
        if self.layout == "nchw":
            return self.tensor(N, C, H, W).permute(0, 2, 3, 1)
        if self.layout == "slice":
            return self.tensor(N, H, W, C + 3)[..., 2 : C + 2]
        if self.layout == "shifted":
            return self.tensor(N, H + 1, W + 1, C)[:, 1:, 1:]
        if self.layout == "transposed":
            return self.tensor(N, W, H, C).transpose(1, 2)
        return self.tensor(N, H, W, C)

    def weight(self, *shape: int) -> Tensor:
        plain = self.tensor(*shape)
        return plain if self.layout == "plain" else plain.transpose(0, 1).contiguous().transpose(0, 1)

    def norm(self, *shape: int) -> Tensor:
        """Mean and 1 / standard deviation, [*shape, 2, C] for shape and C last."""
        return torch.stack([self.tensor(*shape), self.tensor(*shape).abs() + 0.5], -2)
