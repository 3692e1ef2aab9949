"""The embedded image task: which of ten photographs does a 32x32 crop come from?

The photographs are files inside the wheels of scikit-image and scikit-learn, so nothing is fetched.
The columns of each picture are cut in three strips, [train | valid | test], and every crop is taken
inside one strip: no pixel is shared between the three parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dartsfast.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SIDE = 32
WINDOWS = (32, 48, 64)  # sides, in pixels of the photograph, of the windows that become 32x32 crops
SEARCH_CROPS = 800  # per picture, shared between train and valid
TEST_CROPS = 200  # per picture
PARTS = ("train", "valid", "test")

_INSTALL = "install it with: pip install 'dartsfast[search]'"


@dataclass(frozen=True)
class Photo:
    """One photograph: class name, package and path inside it, author, licence and source."""

    name: str
    package: str
    path: str
    credit: str


PHOTOS = (
    Photo("astronaut", "skimage", "data/astronaut.png",
          "NASA Great Images database, https://flic.kr/p/r9qvLn, public domain"),
    Photo("chelsea", "skimage", "data/chelsea.png", "Stefan van der Walt, CC0"),
    Photo("coffee", "skimage", "data/coffee.png",
          "Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0"),
    Photo("rocket", "skimage", "data/rocket.jpg",
          "SpaceX Photos, https://www.flickr.com/photos/spacexphotos/16511594820, public domain"),
    Photo("hubble_deep_field", "skimage", "data/hubble_deep_field.jpg",
          "NASA, http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/, public domain"),
    Photo("retina", "skimage", "data/retina.jpg",
          "Mikael Haggstrom, Medical gallery 2014, doi:10.15347/wjm/2014.008, CC0"),
    Photo("immunohistochemistry", "skimage", "data/ihc.png",
          "Center for Microscopy And Molecular Imaging (CMMI), no known copyright restrictions"),
    Photo("motorcycle", "skimage", "data/motorcycle_left.png",
          "Middlebury 2014 stereo benchmark (D. Scharstein et al., GCPR 2014), "
          "http://vision.middlebury.edu/stereo/data/scenes2014/"),
    Photo("china", "sklearn", "datasets/images/china.jpg",
          "danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035, CC BY 2.0"),
    Photo("flower", "sklearn", "datasets/images/flower.jpg",
          "vultilion, https://www.flickr.com/photos/vultilion/6056698931, CC BY 2.0"),
)  # fmt: skip

CREDITS = tuple(f"{photo.name}: {photo.credit}" for photo in PHOTOS)


def require(module: str) -> ModuleType:
    """Import and return an optional module; InputError with the ``pip`` command where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"this data needs the Python module {module} ({error}): {_INSTALL}") from error


def column_strips(width: int, train_portion: float) -> dict[str, range]:
    """Return the columns of a picture of ``width`` columns that belong to "train", "valid" and "test".

    The last fifth is "test"; ``train_portion`` of the rest is "train". Raises InputError where a strip
    is narrower than the largest window.
    """
    search = width - width // 5
    cut = int(train_portion * search)
    strips = dict(zip(PARTS, (range(0, cut), range(cut, search), range(search, width)), strict=True))
    for part, columns in strips.items():
        if len(columns) < max(WINDOWS):
            raise InputError(
                f"train_portion {train_portion} leaves {len(columns)} columns of a {width}-column photograph "
                f"for {part}, and crops need {max(WINDOWS)}: use a train_portion nearer to 0.5"
            )
    return strips


def load_crops(train_portion: float = 0.5) -> dict[str, tuple[Tensor, Tensor]]:
    """Return for "train", "valid" and "test" the crops, uint8 [N, 3, 32, 32], and classes, int64 [N].

    Always the same crops for the same ``train_portion`` (the test crops are the same for all). Each part
    has as many crops of one picture as of another, in turn, so that any ten consecutive ones show ten
    pictures. Raises InputError for a missing package or file and a part without room for crops.
    """
    train = int(SEARCH_CROPS * train_portion)
    counts = {"train": train, "valid": SEARCH_CROPS - train, "test": TEST_CROPS}
    crops: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for photo in PHOTOS:
        picture = _open(photo)
        for part, columns in column_strips(picture.width, train_portion).items():
            strip = picture.crop((columns.start, 0, columns.stop, picture.height))
            seed = len(PARTS) * PHOTOS.index(photo) + PARTS.index(part)
            crops[part].append(_crop(strip, counts[part], torch.Generator().manual_seed(seed)))
    return {
        # Stacked on dim 1, [n, pictures, 3, 32, 32], the pictures alternate once flattened.
        part: (torch.stack(crops[part], 1).flatten(0, 1), torch.arange(len(PHOTOS)).repeat(counts[part]))
        for part in PARTS
    }


def _open(photo: Photo) -> Image.Image:
    """Decode one photograph from its wheel, without importing the package around it."""
    pil = require("PIL.Image")
    package = find_spec(photo.package)
    if package is None or not package.submodule_search_locations:
        raise InputError(f"the task 'photos' needs the Python package {photo.package}: {_INSTALL}")
    path = Path(package.submodule_search_locations[0]) / photo.path
    try:
        return pil.open(path).convert("RGB")
    except OSError as error:
        raise InputError(
            f"the task 'photos' cannot read {path} ({error}): reinstall {photo.package} from its wheel"
        ) from error


def _crop(strip: Image.Image, count: int, generator: torch.Generator) -> Tensor:
    """Take ``count`` crops, uint8 [count, 3, 32, 32], at random places and in turn at each window size."""
    crops = []
    for turn, window in enumerate(WINDOWS):
        # A 32x32 crop of the shrunk strip shows a window x window square of the photograph. The strip is
        # shrunk by itself, for the filter must not reach into its neighbour's columns.
        size = (strip.width * SIDE // window, strip.height * SIDE // window)
        pixels = torch.from_numpy(np.array(strip.resize(size, require("PIL.Image").Resampling.BILINEAR)))
        places = pixels.unfold(0, SIDE, 1).unfold(1, SIDE, 1)  # a view, [rows, columns, 3, 32, 32]
        n = len(range(turn, count, len(WINDOWS)))
        rows = torch.randint(places.shape[0], (n,), generator=generator)
        columns = torch.randint(places.shape[1], (n,), generator=generator)
        crops.append(places[rows, columns])
    return torch.cat(crops)
