"""Data for searches: images in two search halves and a test set, augmented batches, corpora of text.

Importing this package needs torch and numpy alone; the image readers are imported on first use.
"""

from dartsfast.data.batches import Batches
from dartsfast.data.fingerprint import check_fingerprint, image_fingerprint, text_fingerprint
from dartsfast.data.images import (
    FolderImages,
    ImageSource,
    ImageTask,
    Subset,
    TensorImages,
    absolute_images,
    check_sides,
    image_sides,
    limited,
    load_images,
    whole,
)
from dartsfast.data.text import Corpus, Dictionary, absolute_text, resolve_corpus

__all__ = [
    "Batches",
    "Corpus",
    "Dictionary",
    "FolderImages",
    "ImageSource",
    "ImageTask",
    "Subset",
    "TensorImages",
    "absolute_images",
    "absolute_text",
    "check_fingerprint",
    "check_sides",
    "image_fingerprint",
    "image_sides",
    "limited",
    "load_images",
    "resolve_corpus",
    "text_fingerprint",
    "whole",
]
