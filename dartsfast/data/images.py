"""Image sources and ``load_images``, which turns a spec such as ``cifar10:DIR`` into an ImageTask."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.data import photos
from dartsfast.data.photos import require
from dartsfast.data.pixels import list_images, opened, to_rgb
from dartsfast.errors import InputError

SPECS = "photos, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, imagefolder:DIR"

# Channel means and deviations of the pixels in 0..1. CIFAR-10: the constants of the original DARTS.
_CIFAR_STATS = {
    "cifar10": ([0.49139968, 0.48215827, 0.44653124], [0.24703233, 0.24348505, 0.26158768]),
    "cifar100": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
}
# The usual constants of ImageNet: measuring a folder would mean to decode all of it.
_IMAGENET_STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

_FOLDER_LAYOUT = "the layout is DIR/train/CLASS/*.jpg with DIR/val (or valid, or test)/CLASS/*.jpg"


class ImageSource(Protocol):
    """N labelled images of one size, fetched many at a time by index."""

    @property
    def targets(self) -> Tensor:
        """The classes, int64 [N]."""

    def __len__(self) -> int:
        """Return N."""

    def gather(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices``, int64 [n], as uint8 [n, 3, H, W]."""

    def prepare(self, indices: Tensor) -> Callable[[], Tensor]:
        """Start whatever can go on in the background; the function returned does the rest of ``gather``."""


class TensorImages:
    """Images held in memory: ``images`` uint8 [N, 3, H, W], ``targets`` int64 [N] (else InputError)."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images must be uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        if targets.dtype != torch.int64 or targets.shape != images.shape[:1]:
            raise InputError(
                f"{len(images)} images need targets int64 [{len(images)}], "
                f"got {targets.dtype} {list(targets.shape)}"
            )
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def gather(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices``, int64 [n], as uint8 [n, 3, H, W]."""
        return self.images[indices]

    def prepare(self, indices: Tensor) -> Callable[[], Tensor]:
        """Leave everything to the function returned: a copy from memory is not worth a thread."""
        return lambda: self.gather(indices)


class Subset:
    """The images of ``source`` at ``indices``, int64 [n], in that order."""

    def __init__(self, source: ImageSource, indices: Tensor) -> None:
        self.source = source
        self.indices = indices
        self.targets = source.targets[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices``, int64 [n], as uint8 [n, 3, H, W]."""
        return self.source.gather(self.indices[indices])

    def prepare(self, indices: Tensor) -> Callable[[], Tensor]:
        """Start as the source does."""
        return self.source.prepare(self.indices[indices])


class FolderImages:
    """Image files, decoded when gathered, each resized and centre-cropped to a square.

    ``paths`` are N files, ``targets`` int64 [N] their classes. Gathering a file that cannot be decoded
    raises InputError with its name.
    """

    def __init__(self, paths: Sequence[Path], targets: Tensor, image_size: int) -> None:
        if image_size < 1:
            raise InputError(f"image_size must be at least 1, got {image_size}")
        self.paths = list(paths)
        self.targets = targets
        self.image_size = image_size
        self._pil = require("PIL.Image")
        self._ops = require("PIL.ImageOps")
        # Decoders release the interpreter's lock, so a few threads do decode side by side.
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="dartsfast-decode")

    def __len__(self) -> int:
        return len(self.paths)

    def gather(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices``, int64 [n], as uint8 [n, 3, image_size, image_size]."""
        return self.prepare(indices)()

    def prepare(self, indices: Tensor) -> Callable[[], Tensor]:
        """Start to decode; the function returned waits for the images and is what ``gather`` returns."""
        # The threads only decode: tensor operations in them would bring a second OpenMP team to life,
        # and with more threads than cores every operation of the training loop slows down severalfold.
        images = self._pool.map(self._decode, [self.paths[i] for i in indices.tolist()])
        return lambda: torch.stack(list(images)).permute(0, 3, 1, 2).contiguous()

    def _decode(self, path: Path) -> Tensor:
        """Return one file as uint8 [image_size, image_size, 3]."""
        size = (self.image_size, self.image_size)
        with opened(path) as image:
            image.draft("RGB", size)  # JPEG: decode at the nearest larger power-of-two fraction
            square = self._ops.fit(to_rgb(image), size, method=self._pil.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square))


@dataclass(frozen=True, eq=False)
class ImageTask:
    """A classification task: the two halves of a search, a held-out set, and how to normalise.

    ``train`` fits the weights and ``valid`` the architecture; ``test`` is seen by neither. ``mean`` and
    ``std`` are float32 [3], of pixels in 0..1. Raises InputError for an empty part, a label outside
    0..len(classes)-1 and a deviation that is not above 0.
    """

    name: str
    classes: list[str]
    train: ImageSource
    valid: ImageSource
    test: ImageSource
    mean: Tensor
    std: Tensor
    credit: str = ""

    def __post_init__(self) -> None:
        for part, source in (("train", self.train), ("valid", self.valid), ("test", self.test)):
            if len(source) == 0:
                raise InputError(f"{self.name}: the {part} part has no images, and needs at least one")
            low, high = int(source.targets.min()), int(source.targets.max())
            if low < 0 or high >= len(self.classes):
                raise InputError(
                    f"{self.name}: labels of the {part} part run from {low} to {high}, and "
                    f"{len(self.classes)} classes need 0..{len(self.classes) - 1}: repair the label file"
                )
        if not bool((self.std > 0).all()):
            raise InputError(
                f"{self.name}: channel deviations {self.std.tolist()} must be above 0: are all images alike?"
            )


def whole(task: ImageTask) -> ImageSource:
    """Return all training images of ``task``, both halves of a search, in their order."""
    train, valid = task.train, task.valid
    if isinstance(train, Subset) and isinstance(valid, Subset) and train.source is valid.source:
        return Subset(train.source, torch.cat([train.indices, valid.indices]).sort().values)
    assert isinstance(train, TensorImages) and isinstance(valid, TensorImages)
    return TensorImages(torch.cat([train.images, valid.images]), torch.cat([train.targets, valid.targets]))


def image_sides(task: ImageTask) -> tuple[int, int]:
    """Return height and width of the images; InputError where two reduction cells cannot halve them."""
    height, width = task.train.gather(torch.tensor([0])).shape[-2:]
    check_sides(height, width)
    return height, width


def check_sides(height: int, width: int) -> None:
    """Raise InputError where two reduction cells cannot halve images."""
    if height % 4 or width % 4 or min(height, width) < 8:
        raise InputError(
            f"images of {height}x{width} cannot be halved twice, as the two reduction cells do: "
            "use sides that are multiples of 4, from 8 on (--image_size)"
        )


def limited(source: ImageSource, most: int) -> ImageSource:
    """Return at most ``most`` of the images of ``source``, one fixed choice of all classes; 0: all."""
    if not most:
        return source
    # Not the first ones: files sorted by class must not leave classes out.
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    return Subset(source, order[:most])


def load_images(
    spec: str, *, train_portion: float = 0.5, download: bool = False, image_size: int = 32
) -> ImageTask:
    """Load the images that ``spec`` names and divide the training images between the halves of a search.

    - ``photos``: 32x32 crops of ten photographs that come with scikit-image and scikit-learn.
    - ``cifar10:DIR``, ``cifar100:DIR``, ``fashion-mnist:DIR``: DIR is the root of torchvision's layout.
      Fashion-MNIST is padded with zeros to 32x32 and its one channel repeated.
    - a folder alone: an ``imagefolder`` where it has a folder ``train``, else CIFAR-10.
    - ``imagefolder:DIR``: DIR/train/CLASS/* and DIR/val (or valid, or test)/CLASS/*, at ``image_size``.

    As in the original DARTS the first floor(train_portion * N) training images are ``train`` and the
    others ``valid``; for ``imagefolder``, sorted by class, that is done within each class, and for
    ``photos`` with the columns of each picture. ``download=True`` lets torchvision fetch its data sets;
    nothing is ever fetched without it, and the other specs have nothing to fetch.

    Raises InputError for an unknown spec, data which are missing, empty or damaged, a ``train_portion``
    outside (0, 1) or leaving a half without images, and an ``image_size`` other than 32 with data of
    32x32 pixels.
    """
    name, colon, folder = _with_name(spec).partition(":")
    if name not in ("photos", "imagefolder", "fashion-mnist", *_CIFAR_STATS):
        where = "" if colon else f" (there is no folder {os.path.expanduser(spec)})"
        raise InputError(f"unknown image data {spec!r}{where}: use one of {SPECS}, or a folder that there is")
    if bool(folder) == (name == "photos") or (colon and not folder):
        raise InputError(f"image data {spec!r} is not of a known form: use one of {SPECS}")
    if not 0 < train_portion < 1:
        raise InputError(f"train_portion must lie between 0 and 1, got {train_portion}")
    root = Path(os.path.expanduser(folder))
    if name == "imagefolder":
        return _imagefolder(root, train_portion, image_size)
    if image_size != 32:
        raise InputError(f"{name} has 32x32 images, got image_size {image_size}: only imagefolder has others")
    if name == "photos":
        return _photos(train_portion)
    if name == "fashion-mnist":
        return _fashion_mnist(root, train_portion, download)
    return _cifar(name, root, train_portion, download)


def absolute_images(spec: str) -> str:
    """Return ``spec`` with the folder that it names, if any, as an absolute path."""
    spec = _with_name(spec)
    name, _, folder = spec.partition(":")
    return f"{name}:{Path(os.path.expanduser(folder)).absolute()}" if folder and "/" not in name else spec


def _with_name(spec: str) -> str:
    """Return ``spec`` with the name of its data set, where it is a folder alone."""
    folder = Path(os.path.expanduser(spec))
    name = "imagefolder" if (folder / "train").is_dir() else "cifar10"
    return f"{name}:{spec}" if folder.is_dir() else spec


def _photos(train_portion: float) -> ImageTask:
    parts = {part: TensorImages(*tensors) for part, tensors in photos.load_crops(train_portion).items()}
    mean, std = _channel_stats(parts["train"].images)
    classes = [photo.name for photo in photos.PHOTOS]
    return ImageTask("photos", classes, **parts, mean=mean, std=std, credit="\n".join(photos.CREDITS))


def _cifar(name: str, root: Path, train_portion: float, download: bool) -> ImageTask:
    datasets = require("torchvision.datasets")
    dataset = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    train, test = _torchvision(name, dataset, root, download, dataset.url)
    searched, held_out = (
        # data: uint8 ndarray [N, 32, 32, 3]
        TensorImages(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    halves = _halves(name, searched, train_portion)
    mean, std = map(torch.tensor, _CIFAR_STATS[name])
    credit = "A. Krizhevsky, Learning multiple layers of features from tiny images, 2009"
    return ImageTask(name, list(train.classes), *halves, held_out, mean, std, credit)


def _fashion_mnist(root: Path, train_portion: float, download: bool) -> ImageTask:
    dataset = require("torchvision.datasets").FashionMNIST
    name = "fashion-mnist"
    train, test = _torchvision(
        name, dataset, root, download, "https://github.com/zalandoresearch/fashion-mnist"
    )
    for part in (train, test):
        if part.data.shape[1:] != (28, 28):
            raise InputError(
                f"{name}: images under {root} must be 28x28, got {list(part.data.shape[1:])}: "
                "put the original files there"
            )
    searched, held_out = (
        # data: uint8 [N, 28, 28], padded to [N, 1, 32, 32]; the three channels are views of the one
        TensorImages(F.pad(part.data, (2, 2, 2, 2)).unsqueeze(1).expand(-1, 3, -1, -1), part.targets)
        for part in (train, test)
    )
    halves = _halves(name, searched, train_portion)
    mean, std = _channel_stats(searched.images[: len(halves[0])])
    credit = "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017, MIT licence"
    return ImageTask(name, list(dataset.classes), *halves, held_out, mean, std, credit)


def _imagefolder(root: Path, train_portion: float, image_size: int) -> ImageTask:
    if not (root / "train").is_dir():
        raise InputError(f"imagefolder: there is no folder {root / 'train'}: {_FOLDER_LAYOUT}")
    held_out = next((root / part for part in ("val", "valid", "test") if (root / part).is_dir()), None)
    if held_out is None:
        raise InputError(f"imagefolder: {root} has no held-out folder (val, valid or test): {_FOLDER_LAYOUT}")
    classes = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
    unknown = {entry.name for entry in held_out.iterdir() if entry.is_dir()}.difference(classes)
    if unknown:
        raise InputError(
            f"imagefolder: {held_out} has classes without training images ({', '.join(sorted(unknown))}): "
            "add them to the train folder or remove them"
        )
    paths, targets = _list_classes(root / "train", classes)
    test = FolderImages(*_list_classes(held_out, classes), image_size)
    searched = FolderImages(paths, targets, image_size)
    first, rest = _class_halves(targets, classes, train_portion)
    mean, std = map(torch.tensor, _IMAGENET_STATS)
    return ImageTask(
        "imagefolder", classes, Subset(searched, first), Subset(searched, rest), test, mean, std, f"{root}"
    )


def _torchvision(name: str, dataset: Any, root: Path, download: bool, url: str) -> tuple[Any, Any]:
    """Return the training and test sets of a torchvision data set; InputError where it cannot be read."""
    try:
        return dataset(str(root), train=True, download=download), dataset(str(root), train=False)
    # RuntimeError and OSError: missing files, no connection. The others: damaged idx files.
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise InputError(
            f"cannot read {name} under {root} ({error}): fetch it into that folder with --download "
            f"(download=True), or unpack the files of {url} there as torchvision does"
        ) from error


def _list_classes(folder: Path, classes: list[str]) -> tuple[list[Path], Tensor]:
    """Return the image files below ``folder``/CLASS, sorted by class and path, and classes int64 [N]."""
    paths, counts = [], []
    for name in classes:
        found = list_images(folder / name) if (folder / name).is_dir() else []
        paths += found
        counts.append(len(found))
    if not paths:
        raise InputError(f"imagefolder: there are no images in class folders of {folder}: {_FOLDER_LAYOUT}")
    return paths, torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))


def _halves(name: str, source: ImageSource, train_portion: float) -> tuple[Subset, Subset]:
    """Return the first floor(train_portion * N) images and the others, as the original DARTS."""
    cut = int(train_portion * len(source))
    if not 0 < cut < len(source):
        raise InputError(
            f"{name}: train_portion {train_portion} divides {len(source)} training images into {cut} and "
            f"{len(source) - cut}, and both halves need some: change it or add images"
        )
    order = torch.arange(len(source))
    return Subset(source, order[:cut]), Subset(source, order[cut:])


def _class_halves(targets: Tensor, classes: list[str], train_portion: float) -> tuple[Tensor, Tensor]:
    """Return the indices, int64, of the first floor(train_portion * n) images of each class, and the others.

    ``targets``, int64 [N], must be sorted.
    """
    counts = targets.bincount(minlength=len(classes)).tolist()
    first, rest = [], []
    for name, members in zip(classes, torch.arange(len(targets)).split(counts), strict=True):
        if len(members) < 2:
            raise InputError(
                f"imagefolder: class {name!r} has {'one' if len(members) else 'no'} training image, and "
                "needs two or more, to be in both halves of the data: add images, or remove its folder"
            )
        cut = int(train_portion * len(members))
        if not 0 < cut < len(members):
            raise InputError(
                f"imagefolder: train_portion {train_portion} divides the {len(members)} training images of "
                f"class {name!r} into {cut} and {len(members) - cut}, and both halves need some: "
                "change it or add images"
            )
        first.append(members[:cut])
        rest.append(members[cut:])
    return torch.cat(first), torch.cat(rest)


def _channel_stats(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, float32 [3], of uint8 [N, 3, H, W] over 255.

    Taken from the counts of the 256 values, they do not depend on an order of summation.
    """
    counts = torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(3)]).double()
    shares = counts / counts.sum(1, keepdim=True)  # [3, 256]
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ values
    std = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return mean.float(), std.float()
