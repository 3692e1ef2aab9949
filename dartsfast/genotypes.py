"""Genotypes by name, in JSON, and from the folder of a run: one way in for every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.errors import InputError
from dartsfast.rnn import genotypes as rnn_genotypes

AnyGenotype = cnn_genotypes.Genotype | rnn_genotypes.Genotype


def genotype_to_json(genotype: AnyGenotype) -> dict[str, Any]:
    """Return the fields of ``genotype`` as plain lists."""
    return {
        name: [list(entry) if isinstance(entry, tuple) else entry for entry in value]
        for name, value in genotype._asdict().items()
    }


def genotype_from_json(fields: Any) -> AnyGenotype:
    """Return the genotype that :func:`genotype_to_json` wrote.

    Raises:
        InputError: the fields are those of neither kind.
    """
    for kind in (cnn_genotypes.Genotype, rnn_genotypes.Genotype):
        if isinstance(fields, dict) and set(fields) == set(kind._fields):
            if not all(isinstance(value, list) for value in fields.values()):
                raise InputError(f"no genotype: every field must be a list, got {fields}")
            values = [
                [tuple(entry) if isinstance(entry, list) else entry for entry in fields[name]]
                for name in kind._fields
            ]
            return kind(*values)  # type: ignore[arg-type]
    raise InputError(
        f"no genotype: expected the fields {', '.join(cnn_genotypes.Genotype._fields)} "
        f"or {', '.join(rnn_genotypes.Genotype._fields)}"
    )


def published() -> dict[str, AnyGenotype]:
    """Return the published cells by ``cnn:NAME`` and ``rnn:NAME``."""
    modules = {"cnn": cnn_genotypes, "rnn": rnn_genotypes}
    return {
        f"{kind}:{name}": value
        for kind, module in modules.items()
        for name, value in vars(module).items()
        if isinstance(value, module.Genotype)
    }


def resolve_genotype(spec: str) -> AnyGenotype:
    """Return the genotype that ``spec`` names.

    Args:
        spec: the folder of a run, a ``genotype.json``, or a published cell such as ``DARTS_V2``
            (a CNN cell) or ``rnn:DARTS_V2``.

    Raises:
        InputError: nothing by that name.
    """
    path = Path(spec)
    if path.is_dir():
        path = path / "genotype.json"
    if path.exists():
        try:
            return genotype_from_json(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not JSON ({error})") from error
    known = published()
    for name in (spec, f"cnn:{spec}", f"rnn:{spec}"):
        if name in known:
            return known[name]
    raise InputError(
        f"no genotype {spec!r}: give the folder of a run, a genotype.json, or one of {', '.join(known)}"
    )
