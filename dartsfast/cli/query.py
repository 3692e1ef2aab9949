"""``dartsfast query``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dartsfast.query import DATASETS, EPOCHS, print_answer, query_nasbench201


def add(commands: Any) -> None:
    """Add the command."""
    query = commands.add_parser("query", help="what a benchmark's table says of a cell")
    tables = query.add_subparsers(required=True, metavar="TABLE")
    command = tables.add_parser(
        "nasbench201",
        help="NAS-Bench-201, from the files of NATS-Bench",
        description="Print what a table of trained networks says of a cell. The table is not part of "
        "dartsfast, and is read by nats_bench (pip install 'dartsfast[tables]').",
    )
    command.add_argument(
        "genotype", help='the folder of a search with --space nasbench201, its genotype.json, or "|op~0|+..."'
    )
    command.add_argument(
        "--table",
        metavar="FILE",
        help="NATS-tss-v1_0-3ffb9-simple, the folder, or the file NATS-tss-v1_0-3ffb9.pickle.pbz2 (default: "
        "in $TORCH_HOME, or in ~/.torch)",
    )
    command.add_argument("--dataset", choices=DATASETS, default=DATASETS[0], help="(default: cifar10)")
    command.add_argument("--epochs", type=int, choices=EPOCHS, default=EPOCHS[1], help="(default: 200)")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    answer = query_nasbench201(args.genotype, args.table, args.dataset, args.epochs)
    if args.json:
        print(json.dumps(answer, indent=1))
    else:
        print_answer(answer)
