"""Meters, accuracy, CIFAR transforms and saving, by their names in the original's ``utils.py``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CIFAR_MEAN = [0.49139968, 0.48215827, 0.44653124]
CIFAR_STD = [0.24703233, 0.24348505, 0.26158768]


class AvgrageMeter:
    """A running mean; the name is the original's."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from nothing."""
        self.avg = 0.0
        self.sum = 0.0
        self.cnt = 0

    def update(self, val: float, n: int = 1) -> None:
        """Take in ``n`` samples whose mean is ``val``."""
        self.sum += val * n
        self.cnt += n
        self.avg = self.sum / self.cnt


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Return, for each k, the percentage of ``target`` [N] among the k largest of ``output`` [N, classes].

    Of fewer than k classes all are among the k largest.
    """
    _, predicted = output.topk(min(max(topk), output.size(1)), dim=1)
    correct = predicted.eq(target.view(-1, 1))  # [N, k]
    return [correct[:, :k].any(dim=1).float().mean() * 100.0 for k in topk]


class Cutout:
    """Zero one square of ``length`` pixels at a random place (DeVries and Taylor, 2017)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, img: Tensor) -> Tensor:
        """Cut [C, H, W] in place; the square may reach over the border. Draws from torch's generator."""
        height, width = img.shape[-2:]
        y = int(torch.randint(height, ()))
        x = int(torch.randint(width, ()))
        half = self.length // 2
        img[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0.0
        return img


def _data_transforms_cifar10(args: Any) -> tuple[Any, Any]:
    """Return the train and valid transforms; ``args`` has ``cutout`` and ``cutout_length``."""
    from torchvision import transforms

    normalise = [transforms.ToTensor(), transforms.Normalize(CIFAR_MEAN, CIFAR_STD)]
    train = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *normalise]
    if args.cutout:
        train.append(Cutout(args.cutout_length))
    return transforms.Compose(train), transforms.Compose(normalise)


def count_parameters_in_MB(  # noqa: N802 - the original's name
    model: nn.Module,
) -> float:
    """Return the number of parameters in millions, auxiliary heads left out."""
    return sum(p.numel() for name, p in model.named_parameters() if "auxiliary" not in name) / 1e6


def save_checkpoint(state: Any, is_best: bool, save: str) -> None:
    """Write ``state`` to ``<save>/checkpoint.pth.tar``, and to ``model_best.pth.tar`` if it is the best."""
    path = os.path.join(save, "checkpoint.pth.tar")
    torch.save(state, path)
    if is_best:
        shutil.copyfile(path, os.path.join(save, "model_best.pth.tar"))


def save(model: nn.Module, model_path: str) -> None:
    """Write the model's ``state_dict``."""
    torch.save(model.state_dict(), model_path)


def load(model: nn.Module, model_path: str) -> None:
    """Read a ``state_dict`` into the model; tensors only, no pickled code runs."""
    model.load_state_dict(torch.load(model_path, map_location="cpu", weights_only=True))


def drop_path(x: Tensor, drop_prob: float) -> Tensor:
    """Drop samples of ``x`` [N, C, H, W] with probability ``drop_prob``, in place; scale the others."""
    if drop_prob > 0.0:
        keep_prob = 1.0 - drop_prob
        # Not bernoulli_: of every probability, and so in every epoch, torch.compile would make a new network.
        mask = torch.rand(x.size(0), 1, 1, 1, device=x.device) < keep_prob
        x.div_(keep_prob)
        x.mul_(mask)
    return x


def create_exp_dir(path: str, scripts_to_save: Sequence[str] | None = None) -> None:
    """Make the folder ``path`` and copy ``scripts_to_save`` into ``<path>/scripts``."""
    os.makedirs(path, exist_ok=True)
    if scripts_to_save is not None:
        os.makedirs(os.path.join(path, "scripts"), exist_ok=True)
        for script in scripts_to_save:
            shutil.copyfile(script, os.path.join(path, "scripts", os.path.basename(script)))
