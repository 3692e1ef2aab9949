"""Drawings of a recurrent cell: the original's ``visualize.py`` for text, without graphviz.

``python -m dartsfast.rnn.visualize DARTS_V2`` draws ``recurrent.*``.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dartsfast.drawing import draw_recurrent, find_genotype
from dartsfast.errors import InputError
from dartsfast.rnn import genotypes


def plot(genotype: Sequence[tuple[str, int]], filename: str | os.PathLike) -> list[Path]:
    """Draw a recurrent cell's edges (``genotype.recurrent``) to ``filename`` .png and .svg.

    Returns the two paths; ``InputError`` for an edge from no earlier node.
    """
    return draw_recurrent(genotype, filename)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the cell of a published genotype in the working folder; ``InputError`` for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m dartsfast.rnn.visualize", description=main.__doc__)
    parser.add_argument("genotype", help="its name in dartsfast.rnn.genotypes, such as DARTS_V2")
    genotype = find_genotype(genotypes, parser.parse_args(argv).genotype)
    for path in plot(genotype.recurrent, "recurrent"):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
