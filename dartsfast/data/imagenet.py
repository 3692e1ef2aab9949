"""Batches of image files as ImageNet is trained on: decoded and augmented by worker processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dartsfast.data.batches import Batches, stream_seed
from dartsfast.data.images import FolderImages, ImageSource, Subset
from dartsfast.data.photos import require
from dartsfast.data.pixels import opened, to_rgb
from dartsfast.errors import InputError

Decoded = Tensor | InputError  # an image, or what is wrong with its file


class ImageNetBatches(Batches):
    """Batches of image files under the recipe of the original's ``train_imagenet.py``.

    With ``augment`` an image is a random part, 8 to 100 % of the area, scaled to ``image_size``, mirrored
    with probability 0.5, its brightness, contrast and saturation changed by up to 40 % and its hue by up to
    a fifth of the circle. Without, it is the centre of the image, whose shorter side is scaled to 8/7 of
    ``image_size`` (256 for 224).

    ``workers`` processes decode; with 0 this one does. Each image draws from a generator of its own, seeded
    by (seed, stream, pass, image), so that batches depend neither on the workers nor on where a run goes
    on. The global random state is neither read nor changed. Other arguments are those of :class:`Batches`.

    Raises:
        InputError: as :class:`Batches`, and where ``source`` is not of image files.
    """

    def __init__(
        self, source: ImageSource, batch_size: int, *, image_size: int, workers: int, **options: Any
    ) -> None:
        super().__init__(source, batch_size, **options)
        self.paths = _files(source)
        self.workers = workers
        self.transform = _augmentation(image_size) if self.augment else _centre(image_size)

    def batch(self, pass_: int, index: int) -> tuple[Tensor, Tensor]:
        """Return a batch as :meth:`Batches.batch` does, decoded by this process."""
        images = _Images(self.paths, self.transform, (self.seed, self.stream, pass_))
        chosen = self._chosen(pass_, index)
        return self._whole(_stacked([images[i] for i in chosen.tolist()]), pass_, index)

    def iterate(self, pass_: int, start: int = 0) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield the batches ``start``, ``start`` + 1, ... of a pass, the same as from ``batch``."""
        numbers = range(start, len(self))
        loader = DataLoader(
            _Images(self.paths, self.transform, (self.seed, self.stream, pass_)),
            batch_sampler=[self._chosen(pass_, index).tolist() for index in numbers],
            num_workers=self.workers,
            collate_fn=_stacked,
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # it would draw from the global one
        )
        began = time.perf_counter()
        batches = iter(loader)
        for index in numbers:
            ready = self._whole(self._next(batches), pass_, index)
            self.waited += time.perf_counter() - began
            yield ready
            began = time.perf_counter()

    def _next(self, batches: Any) -> Decoded:
        try:
            return next(batches)
        except RuntimeError as error:  # a worker was killed, or found no room in shared memory
            raise InputError(
                f"a process that decodes images has failed ({' '.join(str(error).split())}): it may lack "
                "memory, use fewer --workers; with 0 the run itself decodes"
            ) from error

    def _whole(self, images: Decoded, pass_: int, index: int) -> tuple[Tensor, Tensor]:
        """Return a batch of ``images``, uint8 [B, 3, S, S], normalised."""
        if isinstance(images, InputError):
            raise images
        return self._finish(images, self._chosen(pass_, index), self._drawn(pass_, index))


class _Images(Dataset[Decoded]):
    """The images of a pass, by their numbers in the source."""

    def __init__(self, paths: Sequence[Path], transform: Any, position: tuple[int, str, int]) -> None:
        self.paths = paths
        self.transform = transform
        self.position = position

    def __getitem__(self, index: int) -> Decoded:
        """Return one image, uint8 [3, S, S]; what is wrong with it goes to the run as a value, whole."""
        seed, stream, pass_ = self.position
        try:
            with torch.random.fork_rng(devices=[]), opened(self.paths[index]) as image:
                # torchvision draws from the global generator. Not torch.manual_seed: it seeds GPUs too.
                torch.default_generator.manual_seed(stream_seed(seed, stream, pass_, index))
                return self.transform(to_rgb(image))
        except InputError as error:
            return error


def _stacked(images: Sequence[Decoded]) -> Decoded:
    """Return images [3, S, S] as a batch, or the first that is none. A rank's part may be empty."""
    decoded = [image for image in images if isinstance(image, Tensor)]
    if len(decoded) == len(images):
        return torch.stack(decoded) if decoded else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return next(image for image in images if isinstance(image, InputError))


def _leave_signals_to_the_run(worker: int) -> None:
    """Have a worker ignore what stops a run, such as Ctrl-C: it ends when the run has done with it."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _files(source: ImageSource) -> list[Path]:
    """Return the files of ``source``, by its own numbers."""
    indices = torch.arange(len(source))
    while isinstance(source, Subset):
        indices, source = source.indices[indices], source.source
    if not isinstance(source, FolderImages):
        raise InputError("the network imagenet takes image files: use --data imagefolder:DIR")
    return [source.paths[i] for i in indices.tolist()]


def _augmentation(image_size: int) -> Any:
    transforms = require("torchvision.transforms")
    return transforms.Compose([
        transforms.RandomResizedCrop(image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
        transforms.PILToTensor(),
    ])  # fmt: skip


def _centre(image_size: int) -> Any:
    transforms = require("torchvision.transforms")
    return transforms.Compose([
        transforms.Resize(round(image_size * 8 / 7)),
        transforms.CenterCrop(image_size),
        transforms.PILToTensor(),
    ])  # fmt: skip
