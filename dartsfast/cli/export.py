"""``dartsfast export``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from dartsfast.export.names import FORMATS
from dartsfast.parsing import add_field
from dartsfast.train.config import IMAGES, NETWORK_OPTIONS, TestCNNConfig

WHAT = (
    "the folder of a training, or a file of weights, whose network the options describe; for the format "
    'module also a cell: the folder of a search, a genotype.json, "Genotype(...)", or a published cell such '
    "as DARTS_V2"
)
FORMAT = (
    "torch: a program of torch.export (.pt2); onnx: ONNX; both of trained CNNs, for any number of images. "
    "module: a Python file that needs torch alone, with the weights of a trained network beside it. "
    "Several can be given (default: torch)"
)


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "export",
        help="a trained network or a found cell for use elsewhere",
        description="Write a network for use elsewhere, and hold what the file computes against it.",
        argument_default=argparse.SUPPRESS,
    )
    command.add_argument("what", metavar="WHAT", help=WHAT)
    command.add_argument("--format", nargs="+", choices=FORMATS, dest="formats", help=FORMAT)
    command.add_argument(
        "--out",
        metavar="FILE",
        help="the file, with or without its suffix (default: beside WHAT, by its name)",
    )
    command.add_argument(
        "--data",
        help="images whose normalisation and names of classes go into the file (default: those of the "
        f"training; of a file of weights none). {IMAGES}",
    )
    command.add_argument(
        "--classes", type=int, metavar="N", help="how many (default: those of the weights, or 10)"
    )
    for field in dataclasses.fields(TestCNNConfig):
        if field.name in NETWORK_OPTIONS:
            add_field(command, field)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dartsfast.export import export_network

    given = dict(vars(args))
    del given["run"]
    network = TestCNNConfig(**{name: given.pop(name) for name in NETWORK_OPTIONS if name in given})
    for exported in export_network(given.pop("what"), **given, network=network):
        print(exported, flush=True)
