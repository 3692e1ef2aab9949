"""Image files as 8-bit RGB, whatever their pixels are, and which files of a folder are images."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dartsfast.data.photos import require
from dartsfast.errors import InputError
from dartsfast.files import check_regular

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"))
_BITS_PER_SAMPLE = 258  # the TIFF tag


def list_images(folder: Path) -> list[Path]:
    """Return the image files below ``folder``, sorted; links to folders are followed, as torchvision does.

    Raises:
        InputError: one by the name of an image that is no regular file.
    """
    return sorted(_walk(folder, ()))


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Yield the image files below ``folder``; ``above`` are the real paths on the way to it."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder above: there is no end that way
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir():
                yield from _walk(path, (*above, real))
            elif path.suffix.lower() in EXTENSIONS:
                if not entry.is_file():
                    check_regular(path)  # says what it is
                yield path


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Within, the image file is open; what it holds is decoded where it is asked for.

    Raises:
        InputError: it cannot be read or decoded, also within.
    """
    pil = require("PIL.Image")
    check_regular(path)
    try:
        with pil.open(path) as image:
            yield image
    # What Pillow raises for damaged files, depending on the format and on where the damage is.
    except (OSError, SyntaxError, ValueError, struct.error, pil.DecompressionBombError) as error:
        raise InputError(f"cannot decode the image {path} ({error}): repair or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` as RGB of 8 bits: of more bits the highest 8, of transparency the colours beneath.

    Raises:
        ValueError: pixels without a known range (floats, 32-bit integers), or colours unknown to Pillow.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise ValueError(f"{kind} pixels have no known range: save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255. Colours of 16 bits it cuts to their high bytes, as here.
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0] if image.format == "TIFF" else 16  # type: ignore[attr-defined]
        image = image.convert("I").point(lambda value: value * 2.0 ** (8 - bits)).convert("L")
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # the same colours; to RGB at once warns
    return image.convert("RGB")
