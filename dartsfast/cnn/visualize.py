"""Drawings of a cell: the original's ``visualize.py`` for images, without graphviz.

``python -m dartsfast.cnn.visualize DARTS_V2`` draws ``normal.*`` and ``reduction.*``.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dartsfast.cnn import genotypes
from dartsfast.drawing import draw_cell, find_genotype
from dartsfast.errors import InputError


def plot(genotype: Sequence[tuple[str, int]], filename: str | os.PathLike) -> list[Path]:
    """Draw one cell's edges (``genotype.normal`` or ``genotype.reduce``) to ``filename`` .png and .svg.

    Returns the two paths; ``InputError`` for an edge from no earlier node.
    """
    return draw_cell(genotype, filename)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw both cells of a published genotype in the working folder; ``InputError`` for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m dartsfast.cnn.visualize", description=main.__doc__)
    parser.add_argument("genotype", help="its name in dartsfast.cnn.genotypes, such as DARTS_V2")
    genotype = find_genotype(genotypes, parser.parse_args(argv).genotype)
    for cell, filename in ((genotype.normal, "normal"), (genotype.reduce, "reduction")):
        for path in plot(cell, filename):
            print(path)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
