"""What a search network refuses: sizes that make none, images that do not fit, labels that are no class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dartsfast.errors import InputError, check_range
from dartsfast.modules.plain import is_plain, is_plain_tree
from dartsfast.names import CNN_MEMORY_MODES


def check_images(stem: nn.Module, images: Tensor) -> None:
    """Raise InputError where images do not fit the first convolution of a stem that looks as it was built."""
    first = next(stem.children(), stem)
    if not is_plain(stem, nn.Sequential) or not isinstance(first, nn.Conv2d) or not is_plain_tree(first):
        return
    if images.dim() != 4 or images.shape[1] != first.in_channels:
        raise InputError(f"Network takes images [N, {first.in_channels}, H, W], got {list(images.shape)}")


def check_labels(criterion: Any, logits: Tensor, target: Any) -> None:
    """Raise InputError for a label that is no class; what other criteria take is their own affair."""
    classes = isinstance(target, Tensor) and target.dtype == torch.int64 and logits.dim() == 2
    if classes and type(criterion) is nn.CrossEntropyLoss:
        labels = target.masked_fill(target == criterion.ignore_index, 0)
        check_range(labels, logits.shape[-1], "label", "{} classes: labels run from 0")


def check_programs(backend: str, what: str) -> None:
    """Raise InputError for ``what`` is planned from the programs of a backend that has none."""
    if backend == "reference":
        raise InputError(
            f"{what} is planned from programs, and the reference path has none: choose one of "
            f"{', '.join(CNN_MEMORY_MODES)}"
        )


def check_sizes(
    C: int,
    num_classes: int,
    layers: int,
    steps: int,
    multiplier: int,
    stem_multiplier: int,
) -> None:
    """Raise InputError for sizes that make no network."""
    sizes = {
        "C": C,
        "num_classes": num_classes,
        "layers": layers,
        "steps": steps,
        "multiplier": multiplier,
        "stem_multiplier": stem_multiplier,
    }
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"Network needs {name} >= 1, got {value}")
    if multiplier > steps:
        raise InputError(
            f"multiplier={multiplier} nodes cannot be concatenated: a cell has steps={steps} of them"
        )
