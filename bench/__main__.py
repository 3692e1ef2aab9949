"""``python -m bench``: run suites, or ``python -m bench report DIR``: turn their results into tables."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import insert, markdown, read_results
from bench.suites import SUITES, Options, run_suite, save_result
from dartsfast.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 1 where a gate refused to time something, 2 for input that cannot work."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        return _report(given[1:]) if given[:1] == ["report"] else _run(given)
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time dartsfast and its peers.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--list", action="store_true", help="name the suites and stop")
    parser.add_argument(
        "--out",
        type=os.path.expanduser,
        default="runs/bench",
        help="folder of the results (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    parser.add_argument("--batch", type=int, help="images or columns of text a batch (default: the suite's)")
    parser.add_argument("--repeats", type=int, help="samples a peer (default: the suite's)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, no figures")
    parser.add_argument("--compile", action="store_true", help="cnn_step: torch.compile too, minutes more")
    args = parser.parse_args(argv)
    if args.list:
        for name, suite in SUITES.items():
            print(f"{name:<10}  {suite.about}")
        return 0
    unknown = [name for name in args.suites if name not in SUITES]
    if unknown:
        raise InputError(f"unknown suite {unknown[0]!r}: choose from {', '.join(SUITES)}")
    options = Options(
        threads=args.threads,
        batch=args.batch,
        repeats=args.repeats,
        quick=args.quick,
        device=args.device,
        compile=args.compile,
    )
    options.check()
    Path(args.out).mkdir(parents=True, exist_ok=True)  # before the work, not after it
    refused = 0
    for name in args.suites or SUITES:
        result = run_suite(name, options)
        for file in save_result(result, args.out):
            print(file)
        refused += sum("refused" in row for row in result["rows"])
    return 1 if refused else 0


def _report(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description="Markdown of results.")
    parser.add_argument("folder", help="what --out was")
    parser.add_argument("--readme", help="put the tables between this file's bench markers")
    args = parser.parse_args(argv)
    results = read_results(args.folder)
    if args.readme:
        insert(args.readme, results)
        print(args.readme)
    else:
        print("\n\n".join(markdown(result) for result in results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
