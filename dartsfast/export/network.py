"""Files of a network: written whole, read again, and held against the network."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dartsfast.errors import CheckFailedError, InputError
from dartsfast.export.formats import PROGRAMS
from dartsfast.export.module import load_module, module_text, weights_path
from dartsfast.export.names import FORMATS
from dartsfast.export.source import Options, Source, find_source
from dartsfast.files import written_whole
from dartsfast.genotypes import CNN, as_genotype, picture_name
from dartsfast.train.config import TestCNNConfig
from dartsfast.train.weights import weights_content

BOUND = 1e-4  # of the largest output; other orders of sums come to 1e-6 in 20 cells
BATCHES = (1, 5)  # inputs that files and networks compute
STEPS = 3  # of a text


class Exported(NamedTuple):
    """A file, and how far it is from the network: the largest difference over the largest output."""

    path: Path
    difference: float

    def __str__(self) -> str:
        return f"{self.path}  {_words(self.difference)}"


def _words(difference: float) -> str:
    return f"largest difference {difference:.1e} of the largest output, at most {BOUND:.0e}"


def export_network(
    what: Any,
    formats: Sequence[str] = ("torch",),
    *,
    out: str = "",
    network: TestCNNConfig | None = None,
    data: str = "",
    classes: int = 0,
) -> list[Exported]:
    """Write a network in formats, and return the files, which compute what the network computes.

    Args:
        what: the folder of a training; a file of weights, whose network ``network`` describes as for a test;
            with the format ``module`` alone also a cell, as ``dartsfast train cnn`` takes it, or a genotype.
        formats: ``torch`` (``torch.export``) and ``onnx``, of trained CNNs, for any number of images;
            ``module`` (a Python file that needs torch alone, beside it the weights of a trained network).
        out: path of the file; its suffix can be left out. Default: beside ``what``.
        network: what the test of a file of weights takes.
        data: images whose normalisation and names of classes go into the files; a training has its own.
        classes: how many; 0 for those of the weights, or 10.

    Raises:
        InputError: no such network, or none that a format takes; a package is missing; a file exists.
        CheckFailedError: a file computes something else than the network; it is not kept.
        OSError: it cannot be written, as on a full disk; nothing is left of it.
    """
    what = os.fspath(what) if isinstance(what, (str, os.PathLike)) else repr(as_genotype(what))
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"unknown format {unknown[0]!r}: choose of {', '.join(FORMATS)}")
    for name in formats:
        if name in PROGRAMS:
            PROGRAMS[name].check()
    paths = _paths(what, out, list(dict.fromkeys(formats)))
    _refuse_existing(paths.values())
    source = find_source(what, Options(network or TestCNNConfig(), data, classes))
    for name in paths:
        _check_fits(what, name, source)
    if "module" in paths and source.trained:
        _refuse_existing([weights_path(paths["module"])])
    return [Exported(path, _write(name, path, source)) for name, path in paths.items()]


def _refuse_existing(files: Iterable[Path]) -> None:
    for file in files:
        if os.path.lexists(file):
            raise InputError(f"{file} is there already: choose another --out, or remove it")


def _check_fits(what: str, name: str, source: Source) -> None:
    if name == "module":
        return
    if source.kind != CNN:
        raise InputError(f"{name} is a format of trained CNNs, and {what} is recurrent: use --format module")
    if not source.trained:
        raise InputError(
            f"{name} is a format of trained networks, and {what} names a cell: train it "
            "(dartsfast train cnn), or use --format module"
        )


def _paths(what: str, out: str, formats: Sequence[str]) -> dict[str, Path]:
    suffix = Path(out).suffix
    if suffix in FORMATS.values() and [suffix] != [FORMATS[name] for name in formats]:
        raise InputError(
            f"--out {out} is of one format, and {', '.join(formats)} asked for: leave out {suffix}"
        )
    stem = Path(os.path.expanduser(out.removesuffix(suffix) if suffix in FORMATS.values() else out))
    if not out:
        stem = Path(os.path.expanduser(str(picture_name(what)).removesuffix(".pt")))
    elif not stem.parent.is_dir():
        raise InputError(f"there is no folder {stem.parent}: make it, or choose another --out")
    elif os.path.isdir(out):
        raise InputError(f"--out {out} is a folder: name a file in it")
    found = {name: stem.with_name(stem.name + FORMATS[name]) for name in formats}
    if "module" in found and not out:  # such that Python can import it
        name = re.sub(r"\W", "_", stem.name)
        found["module"] = stem.with_name(f"{'_' if name[:1].isdigit() else ''}{name}{FORMATS['module']}")
    return found


def _write(name: str, path: Path, source: Source) -> float:
    """Write a file and return how far it is from the network."""
    with ExitStack() as files:
        if name == "module":
            file = files.enter_context(written_whole(path, module_text(source).encode()))
            if source.trained:
                weights = weights_content(source.network.state_dict())
                files.enter_context(written_whole(weights_path(path), weights))
            run = load_module(file.read_bytes(), source)
        else:
            content = PROGRAMS[name].content(source.network, source.side, source.about)
            run = PROGRAMS[name].load(files.enter_context(written_whole(path, content)).read_bytes())
        found = _difference(run, source)
        if not found <= BOUND:  # NaN too
            raise CheckFailedError(
                f"{path} computes something else than the network: {_words(found)} would do; it was not kept"
            )
    return found


@torch.no_grad()
def _difference(run: Callable[..., Any], source: Source) -> float:
    """Return the largest difference over the largest output of ``BATCHES``; NaN where one is NaN."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch in BATCHES:
        if source.kind == CNN:
            images = torch.randn(batch, 3, source.side, source.side, generator=generator)
            ours, theirs = source.network(images), run(images)
        else:
            words, units = source.sizes
            tokens = torch.randint(words, (STEPS, batch), generator=generator)
            hidden = torch.randn(1, batch, units, generator=generator)
            (ours, _), (theirs, _) = source.network(tokens, [hidden]), run(tokens, hidden)
        if theirs.shape != ours.shape:
            return math.inf
        largest = ours.abs().max().clamp(min=torch.finfo(ours.dtype).tiny)
        found.append((theirs - ours).abs().max() / largest)
    return torch.stack(found).max().item()
