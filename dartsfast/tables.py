"""Tables on a terminal."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

_WIDEST = 200  # characters


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> None:
    """Print rows, the last ``numbers`` columns flush right; by rich where it is installed."""
    if importlib.util.find_spec("rich") is None:
        widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
        print(f"\n{title}")
        for line in [columns, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i >= len(columns) - numbers else "left")
    for row in rows:
        table.add_row(*row)
    print(f"\n{title}")  # of the table it would wrap where that is narrow
    # What is no terminal has no width that a table must fit.
    Console(width=None if sys.stdout.isatty() else _WIDEST).print(table)
