"""Genotypes by the names that the commands take: runs, files, texts, published cells."""

from __future__ import annotations

import os
from typing import Any

from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.errors import InputError
from dartsfast.files import is_archive, read_text
from dartsfast.genotypes.check import Kind, as_genotype
from dartsfast.genotypes.text import looks_like_genotype, parse_genotype
from dartsfast.rnn import genotypes as rnn_genotypes


def resolve_genotype(spec: str, kind: Kind | None = None) -> Any:
    """Return the genotype that ``spec`` names, as :func:`as_genotype` does, of operations that there are.

    Args:
        spec: the folder of a run; a file of JSON, such as its ``genotype.json``, or of the printed
            ``Genotype(...)`` or a cell of NAS-Bench-201; one of these texts itself; or a published cell such
            as ``DARTS_V2`` (a CNN cell) or ``rnn:DARTS_V2``.
        kind: ``CNN``, ``RNN`` or ``NB201`` where the others will not do; a name that two have is then of
            that kind.

    Raises:
        InputError: none of these, no genotype in it, or one of the other kind.
    """
    # Not at the top: genotypes alone need no torch.
    from dartsfast.cnn.operations import OPS
    from dartsfast.rnn.utils import ACTIVATIONS

    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        path = os.path.join(path, "genotype.json")
        if not os.path.lexists(path):
            raise InputError(
                f"the folder {spec} holds no genotype.json: a search writes it there at the end of its first "
                "epoch"
            )
    if os.path.isfile(path) and is_archive(path):
        raise InputError(
            f"{spec} is a file of weights or a checkpoint, which do not say which cell they are of: name the "
            "folder of the run, or its genotype.json"
        )
    if os.path.lexists(path):
        try:
            genotype = as_genotype(parse_genotype(read_text(path)), kind)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    else:
        genotype = as_genotype(spec, kind)
    names: Any = {
        cnn_genotypes.Genotype: OPS,
        rnn_genotypes.Genotype: ACTIVATIONS,
        cnn_genotypes.Architecture: cnn_genotypes.NASBENCH201,
    }[type(genotype)]
    try:
        return as_genotype(genotype, known=names)
    except InputError as error:
        raise InputError(
            f"{error}; cells of operations of your own are drawn by dartsfast.drawing.draw_genotype"
        ) from error


def picture_name(spec: str) -> str:
    """Return the path, without suffix, of the picture of what :func:`resolve_genotype` takes."""
    base = spec.rstrip("/").removesuffix(".json").replace(":", "-")
    if (looks_like_genotype(spec) and not os.path.lexists(spec)) or os.path.basename(base) in ("", ".", ".."):
        return "genotype"
    return base
