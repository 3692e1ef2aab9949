"""The network that a cell is trained in, and which images it takes."""

from __future__ import annotations

from typing import Any

from torch import nn

from dartsfast import ranks
from dartsfast.cnn.model import NetworkCIFAR, NetworkImageNet
from dartsfast.data import Batches, ImageSource, ImageTask, check_sides
from dartsfast.data.imagenet import ImageNetBatches
from dartsfast.errors import InputError
from dartsfast.genotypes import AnyGenotype

NETWORKS: dict[str, Any] = {"cifar": NetworkCIFAR, "imagenet": NetworkImageNet}
# Sides of images, by network: those of the second classifier, and those of the network without.
WITH_AUXILIARY = {"cifar": (32, 40), "imagenet": (224, 256)}
LEAST, MOST = 224, 416  # of ImageNet's network: it pools 7x7 of the 1/32 of an image, which must leave one


def build_network(config: Any, classes: int, cell: AnyGenotype) -> nn.Module:
    """Return the network of ``config`` (of a training or a test), which maps images [N, 3, H, W] to logits
    [N, classes] and those of the second classifier, or None."""
    if "noise" in {name for name, _ in (*cell.normal, *cell.reduce)}:  # type: ignore[union-attr]
        raise InputError(
            "the cell has the operation noise, which the space s4 has for a search to avoid: a network that "
            "answers at random is not trained here. Search longer, or with another --space or --method"
        )
    network = NETWORKS[config.network]
    return network(config.init_channels, classes, config.layers, config.auxiliary, cell)


def check_images_fit(network: str, auxiliary: bool, height: int, width: int) -> None:
    """Raise InputError for images that a network, or its second classifier, cannot take."""
    sides = (height, width)
    if network == "cifar":
        check_sides(height, width)
    elif not all(LEAST <= side <= MOST and side % 32 == 0 for side in sides):
        raise InputError(
            f"the network imagenet takes images with sides from {LEAST} to {MOST} that are multiples of 32, "
            f"got {height}x{width}: use --image_size 224"
        )
    low, high = WITH_AUXILIARY[network]
    if auxiliary and not all(low <= side <= high for side in sides):
        raise InputError(
            f"the second classifier takes images of {low}x{low} to {high}x{high}, got {height}x{width}: use "
            "another --image_size, or leave --auxiliary out"
        )


def batches_of(
    source: ImageSource,
    task: ImageTask,
    config: Any,
    *,
    stream: str,
    seed: int,
    device: Any,
    cutout: int | None,
) -> Batches:
    """Return batches of ``source`` for the network of ``config``, of several ranks this one's part of them.

    Args:
        source: images of ``task``.
        task: how they are normalised.
        config: of a training or a test.
        stream, seed, device: as :class:`Batches` takes them.
        cutout: augmented as in training, squares of this side cut out; None: images as they are, in order.
    """
    common: dict[str, Any] = {
        "mean": task.mean, "std": task.std, "stream": stream, "seed": seed, "device": device,
        "part": (ranks.rank(), ranks.size()),
        "augment": cutout is not None, "shuffle": cutout is not None, "cutout_length": cutout or 0,
    }  # fmt: skip
    most = max(len(source) // ranks.size(), 1)
    size = config.batch_size if cutout is not None else min(config.batch_size, most)
    if config.network == "imagenet":
        sizes = {"image_size": config.image_size, "workers": config.workers}
        return ImageNetBatches(source, size, **sizes, **common)
    return Batches(source, size, **common)
