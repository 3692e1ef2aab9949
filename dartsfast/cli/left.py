"""``dartsfast runs``, ``report`` and ``compare-runs``: what runs have left."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from dartsfast.errors import InputError


def add(commands: Any) -> None:
    """Add the commands."""
    runs = commands.add_parser("runs", help="the runs below a folder")
    runs.add_argument("folder", nargs="?", default="runs", help="(default: runs)")
    runs.set_defaults(run=_runs)
    report = commands.add_parser("report", help="write the report.html of a run anew")
    report.add_argument("folder", help="of the run")
    report.set_defaults(run=_report)
    compare = commands.add_parser("compare-runs", help="runs side by side: what differs, curves, cells")
    compare.add_argument("folders", nargs="+", metavar="RUN", help="folders of two runs or more")
    compare.add_argument("--out", metavar="FILE", help="a page (.html) with curves and cells too")
    compare.set_defaults(run=_compare_runs)


def _runs(args: argparse.Namespace) -> None:
    from dartsfast.runs.listing import COLUMNS, list_runs
    from dartsfast.tables import print_table

    found = list_runs(args.folder)
    if not found:
        raise InputError(f"there are no runs below {args.folder}")
    print_table(f"runs below {args.folder}", COLUMNS, found, numbers=1)


def _report(args: argparse.Namespace) -> None:
    from dartsfast.runs.page import write_report

    print(write_report(Path(os.path.expanduser(args.folder))))


def _compare_runs(args: argparse.Namespace) -> None:
    from dartsfast.runs.comparison import compared, names, read_runs, write_comparison
    from dartsfast.tables import print_table

    runs = read_runs(args.folders)
    rows = [(name, *values) for name, values in compared(runs)]
    print_table("what differs between runs", ("", *names(runs)), rows, numbers=0)
    if args.out:
        print(write_comparison(runs, args.out))
