"""An endless stream of augmented batches in which every batch is a pure function of its position."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.data.images import ImageSource
from dartsfast.errors import InputError

_PADDING = 4  # pixels on each side before the random crop, as in the original DARTS


class Batches:
    """Batches of ``source``, pass after pass, each a pure function of (seed, stream, pass, index).

    A run that goes on from a saved (pass, index) therefore needs no stored random state, two streams with
    different names are independent, and the global random state is neither read nor changed.

    ``augment`` applies the CIFAR recipe of the original DARTS: zero padding by 4 pixels and a random crop,
    a horizontal flip with probability 0.5 and, with ``cutout_length`` > 0, one zeroed square centred on a
    random pixel and clipped at the borders. ``mean`` and ``std`` are float32 [3] of pixels in 0..1.
    ``shuffle`` draws a new order for every pass. ``waited`` sums the seconds that ``iterate`` spent
    on data.

    ``part`` is (rank, ranks) where several processes share the batches: a whole batch has ``batch_size``
    images for each rank and is the one that a single process would have, and a rank's part of it are
    neighbours in it, augmented as there. A pass that shuffles leaves out the few images that ranks cannot
    share evenly; one that does not has all of them, in parts that differ by one, and may be empty. ``images``
    are those of a pass, ``whole`` those of a batch, of all ranks.

    Raises InputError for a batch size below 1 or above the number of images, and for a cutout which is
    negative or asked for without ``augment``.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        *,
        mean: Tensor,
        std: Tensor,
        seed: int,
        stream: str,
        augment: bool,
        cutout_length: int = 0,
        shuffle: bool = True,
        device: str | torch.device = "cpu",
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.rank, self.ranks = part
        most = len(source) // self.ranks
        if not 1 <= batch_size <= most:
            each = f" on each of {self.ranks} ranks" if self.ranks > 1 else ""
            raise InputError(
                f"batch size {batch_size}{each} does not fit the {len(source)} images of the {stream!r} "
                f"stream: use 1 to {most}, or more images"
            )
        if cutout_length < 0 or (cutout_length > 0 and not augment):
            raise InputError(
                f"cutout_length {cutout_length} with augment={augment} cannot work: "
                "use 0, or a length above 0 with augment=True"
            )
        self.source = source
        self.whole = batch_size * self.ranks
        self.images = most * self.ranks if shuffle else len(source)
        self.mean = mean.view(3, 1, 1)
        self.std = std.view(3, 1, 1)
        self.seed = int(seed)
        self.stream = stream
        self.augment = augment
        self.cutout_length = cutout_length
        self.shuffle = shuffle
        self.device = torch.device(device)
        self.waited = 0.0
        self._order = (-1, torch.empty(0, dtype=torch.int64))  # the last pass and its order, int64 [N]

    def __len__(self) -> int:
        """Return the batches a pass; the last one holds what is left over."""
        return -(-self.images // self.whole)

    def batch(self, pass_: int, index: int) -> tuple[Tensor, Tensor]:
        """Return batch ``index`` of pass ``pass_``: x float32 [B, 3, H, W], normalised, and y int64 [B].

        Raises InputError for a pass below 0 and an index outside 0..len(self)-1.
        """
        return self._begin(pass_, index)()

    def iterate(self, pass_: int, start: int = 0) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield the batches ``start``, ``start`` + 1, ... of a pass; files of the next one are being read.

        The same batches as from ``batch``.
        """
        ahead = self._begin(pass_, start) if start < len(self) else None
        for index in range(start + 1, len(self) + 1):
            began = time.perf_counter()
            assert ahead is not None
            ready = ahead()
            ahead = self._begin(pass_, index) if index < len(self) else None
            self.waited += time.perf_counter() - began
            yield ready

    def _begin(self, pass_: int, index: int) -> Callable[[], tuple[Tensor, Tensor]]:
        """Start reading a batch; the function returned gives it, on the device."""
        chosen = self._chosen(pass_, index)
        images = self.source.prepare(chosen)

        def finish() -> tuple[Tensor, Tensor]:
            drawn = self._drawn(pass_, index)
            augmented = _crop_and_flip(images(), drawn) if self.augment else images()
            return self._finish(augmented, chosen, drawn)

        return finish

    def _chosen(self, pass_: int, index: int) -> Tensor:
        """Return which images a batch has, int64 [B]."""
        if pass_ < 0 or not 0 <= index < len(self):
            raise InputError(
                f"no batch {index} in pass {pass_} of the {self.stream!r} stream: "
                f"passes count from 0 and have batches 0..{len(self) - 1}"
            )
        start, (_, begin, end) = index * self.whole, self._part(index)
        return self._pass_order(pass_)[start + begin : start + end]

    def _part(self, index: int) -> tuple[int, int, int]:
        """Return how many images a whole batch has, and where this rank's begin and end in it."""
        count = min(self.whole, self.images - index * self.whole)
        begin, end = (number * count // self.ranks for number in (self.rank, self.rank + 1))
        return count, begin, end

    def _drawn(self, pass_: int, index: int) -> _Draws:
        """Return what is drawn for the images of a batch."""
        return _Draws(self._generator(pass_, index), *self._part(index))

    def _finish(self, images: Tensor, chosen: Tensor, drawn: _Draws) -> tuple[Tensor, Tensor]:
        """Normalise ``images``, uint8 [B, 3, H, W], cut out, and send the batch to the device."""
        y = self.source.targets[chosen]
        x = images.float().div_(255).sub_(self.mean).div_(self.std)
        if self.cutout_length:
            x = x.masked_fill_(_squares(x, self.cutout_length, drawn), 0.0)
        if self.device.type != "cuda":
            return x.to(self.device), y.to(self.device)
        x, y = (part.pin_memory().to(self.device, non_blocking=True) for part in (x, y))
        return x, y

    def _pass_order(self, pass_: int) -> Tensor:
        """Return the order of the images in a pass, int64 [N]."""
        known, order = self._order
        if known != pass_:
            n = len(self.source)
            order = torch.randperm(n, generator=self._generator(pass_)) if self.shuffle else torch.arange(n)
            self._order = (pass_, order)
        return order

    def _generator(self, *position: int) -> torch.Generator:
        """Return a generator for a (pass,), which draws its order, or for a (pass, index)."""
        return torch.Generator().manual_seed(stream_seed(self.seed, self.stream, *position))


def stream_seed(seed: int, stream: str, *position: int) -> int:
    """Return the seed of what is drawn at a position of a stream, such as a (pass, index): 64 bits."""
    key = repr((seed, stream, *map(int, position)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")


class _Draws(NamedTuple):
    """What is drawn for a whole batch of so many ``images``, of which ``begin`` to ``end`` are here."""

    generator: torch.Generator
    images: int
    begin: int
    end: int

    def integers(self, below: int) -> Tensor:
        """Return an integer from 0 on for every image here, int64 [B, 1]."""
        return torch.randint(below, (self.images, 1), generator=self.generator)[self.begin : self.end]

    def coins(self) -> Tensor:
        """Return true or false for every image here, bool [B, 1]."""
        return torch.rand(self.images, 1, generator=self.generator)[self.begin : self.end] < 0.5


def _crop_and_flip(images: Tensor, drawn: _Draws) -> Tensor:
    """Return uint8 [B, 3, H, W] cropped at random from the zero-padded images, half of them mirrored."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (_PADDING,) * 4)
    top, left = drawn.integers(2 * _PADDING + 1), drawn.integers(2 * _PADDING + 1)
    mirror = drawn.coins()
    rows = top + torch.arange(height)  # [B, H]
    columns = left + torch.where(mirror, torch.arange(width - 1, -1, -1), torch.arange(width))  # [B, W]
    image, channel = torch.arange(batch), torch.arange(channels)
    return padded[
        image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def _squares(x: Tensor, length: int, drawn: _Draws) -> Tensor:
    """Return bool [B, 1, H, W], true in one square of each image, as the original's Cutout.

    The square covers [c - length // 2, c + length // 2) around a uniform c, in rows and in columns.
    """
    height, width = x.shape[-2:]

    def near(size: int) -> Tensor:  # [B, size]
        offset = torch.arange(size) - drawn.integers(size)
        return (offset >= -(length // 2)) & (offset < length // 2)

    return near(height)[:, None, :, None] & near(width)[:, None, None, :]
