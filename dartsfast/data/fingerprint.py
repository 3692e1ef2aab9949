"""What a run has seen of its data, small enough for a checkpoint, so that it goes on with the same.

A fingerprint is plain values: for each part of the data how much it holds, and a digest of each of its
pieces, by which a difference is named. A piece is a text, a vocabulary, a picture, or, where there are
more than :data:`LISTED` pictures in a part or they lie in memory, a class of pictures.

What it costs: texts and images in memory are read once, at about half a GB a second. Of image files the names
and sizes are taken (one ``stat`` each: a second per 100,000 on a local disk), and the contents of all where
they are at most :data:`READ` bytes together, else of about :data:`SAMPLED` of them, chosen by name. So a
picture replaced by another of the same size can stay unnoticed in a large folder, and nowhere else.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dartsfast.data.images import FolderImages, ImageSource, ImageTask, Subset
from dartsfast.data.text import Corpus
from dartsfast.errors import InputError

LISTED = 10_000
READ = 256 * 2**20
SAMPLED = 2_000
NAMED = 3  # differences that a message names

# unit: what is counted; count: how many; by: what the pieces are ("", "picture" or "class");
# pieces: {name: [count or bytes, digest]}
Part = dict[str, Any]


def text_fingerprint(corpus: Corpus, *, tested: bool = False) -> dict[str, Part]:
    """Return the fingerprint of the texts that a run reads, and of the words behind their ids.

    The text that it is ``tested`` on belongs to them where it is.
    """
    words = corpus.dictionary.idx2word
    texts = {"train text": corpus.train, "valid text": corpus.valid}
    if tested:
        texts["test text"] = corpus.test
    return {
        **{name: _whole("token", len(text), text.numpy().data) for name, text in texts.items()},
        "vocabulary": _whole("word", len(words), "\n".join(words).encode("utf-8", "surrogatepass")),
    }


def image_fingerprint(task: ImageTask, *, tested: bool = False) -> dict[str, Part]:
    """Return the fingerprint of the images that a run is trained on, and of those that it is ``tested`` on.

    Raises:
        InputError: a picture that is no file, or cannot be read.
    """
    train, valid = _undivided(task.train), _undivided(task.valid)
    parts = {"train": train} if train is valid else {"train": train, "valid": valid}
    if tested:
        parts["test"] = _undivided(task.test)
    return {name: _images(source, task.classes) for name, source in parts.items()}


def check_fingerprint(data: str, kept: dict[str, Part], found: dict[str, Part]) -> None:
    """Raise InputError, naming what differs, unless the data ``found`` at ``data`` are those ``kept``."""
    differences = [
        f"{part}: {difference}"
        for part in kept | found
        if kept.get(part) != found.get(part)
        for difference in _differences(kept.get(part), found.get(part))
    ]
    if differences:
        raise InputError(
            f"the data at {data} are not those that the run began with ({'; '.join(differences)}): "
            "bring them back, or say with --data where they are now"
        )


def _whole(unit: str, count: int, content: Any) -> Part:
    return {"unit": unit, "count": count, "by": "", "pieces": {"": [count, _digest([content])]}}


def _digest(contents: Iterable[Any]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for content in contents:
        found.update(content)
    return found.hexdigest()


def _undivided(source: ImageSource) -> ImageSource:
    while isinstance(source, Subset):
        source = source.source
    return source


def _images(source: ImageSource, classes: list[str]) -> Part:
    if isinstance(source, FolderImages):
        by, pieces = _files(list(map(str, source.paths)))
    else:
        by, pieces = "class", _classes(source, classes)
    return {"unit": "picture", "count": len(source), "by": by, "pieces": pieces}


def _classes(source: ImageSource, classes: list[str]) -> dict[str, list]:
    pieces = {}
    for k, name in enumerate(classes):
        mine = (source.targets == k).nonzero().flatten()
        # Its places among the others count as well: a run draws images by place.
        contents = (mine.numpy().data, source.gather(mine).contiguous().numpy().data)
        pieces[name] = [len(mine), _digest(contents)]
    return pieces


def _files(paths: list[str]) -> tuple[str, dict[str, list]]:
    # Sorted by class: what the first and the last have in common is the folder of all classes.
    root = os.path.commonpath([os.path.dirname(paths[0]), os.path.dirname(paths[-1])])
    names = [path[len(root) + 1 :] for path in paths]
    with ThreadPoolExecutor(8) as pool:  # a network file system answers many at a time
        chunks = (paths[i : i + 1000] for i in range(0, len(paths), 1000))
        sizes = list(itertools.chain.from_iterable(pool.map(_sizes, chunks)))
        # By powers of two: a picture more or less leaves the choice as it is.
        share = 1 if sum(sizes) <= READ else 1 << (len(paths) // SAMPLED).bit_length()
        read = [path for path in paths if zlib.crc32(_bytes(path[len(root) :])) % share == 0]
        contents = dict(zip(read, pool.map(_content, read), strict=True))
    files = [[size, contents.get(path, "")] for path, size in zip(paths, sizes, strict=True)]
    if len(names) <= LISTED:
        return "picture", dict(zip(names, files, strict=True))
    classes: dict[str, list[bytes]] = {}
    for name, file in zip(names, files, strict=True):
        classes.setdefault(name.split(os.sep)[0], []).append(_bytes(f"{name}\0{file}\n"))
    return "class", {name: [len(lines), _digest(lines)] for name, lines in classes.items()}


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # names of files need not be UTF-8


def _sizes(paths: list[str]) -> list[int]:
    return [_looked_at(path).st_size for path in paths]


def _looked_at(path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read the image {path} ({error.strerror}): repair or remove it") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"the image {path} is no file: remove it")
    return found


def _content(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return _digest(iter(lambda: file.read(2**20), b""))
    except OSError as error:
        raise InputError(f"cannot read the image {path} ({error.strerror}): repair or remove it") from error


def _differences(kept: Part | None, found: Part | None) -> list[str]:
    """Return in words how two fingerprints of one part differ."""
    if kept is None or found is None:
        return ["not there before" if kept is None else "not there now"]
    unit, before, now = kept["unit"], kept["pieces"], found["pieces"]
    if not kept["by"] or kept["by"] != found["by"]:
        if kept["count"] == found["count"]:
            return [f"other {unit}s ({found['count']:,}, as before)"]
        return [f"{found['count']:,} {unit}s, were {kept['count']:,}"]
    words = []
    for what, names in (
        ("removed", [name for name in before if name not in now]),
        ("added", [name for name in now if name not in before]),
        ("changed", [name for name in before if name in now and before[name] != now[name]]),
    ):
        if not names:
            continue
        plural = kept["by"] if len(names) == 1 else {"picture": "pictures", "class": "classes"}[kept["by"]]
        shown = names[:NAMED]
        if kept["by"] == "class":
            zero = [0, ""]
            counts = [(name, now.get(name, zero)[0], before.get(name, zero)[0]) for name in shown]
            shown = [f"{name} ({n:,} {unit}s, were {m:,})" for name, n, m in counts]
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        words.append(f"{len(names):,} {plural} {what}: {', '.join(shown)}{more}")
    return words or [f"the same {unit}s in another order"]
