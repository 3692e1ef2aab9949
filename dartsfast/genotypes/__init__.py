"""Genotypes in every form that people hold.

:func:`as_genotype` takes a genotype in memory; :func:`resolve_genotype`, for the commands, finds it in files
too.
"""

from dartsfast.genotypes.check import (
    CNN,
    NB201,
    RNN,
    TYPES,
    AnyGenotype,
    Kind,
    as_genotype,
    check_cell,
    genotype_from_json,
    genotype_to_json,
    published,
)
from dartsfast.genotypes.find import picture_name, resolve_genotype

__all__ = [
    "CNN",
    "NB201",
    "RNN",
    "TYPES",
    "AnyGenotype",
    "Kind",
    "as_genotype",
    "check_cell",
    "genotype_from_json",
    "genotype_to_json",
    "picture_name",
    "published",
    "resolve_genotype",
]
