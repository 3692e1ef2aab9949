"""``dartsfast export``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from dartsfast.cli.flags import add_preset
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
    add_preset(command, TestCNNConfig, only=NETWORK_OPTIONS)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dartsfast.export import export_network

    given = dict(vars(args))
    del given["run"]
    preset = TestCNNConfig.protocol(given.pop("preset")) if "preset" in given else {}
    network = {name: value for name, value in {**preset, **given}.items() if name in NETWORK_OPTIONS}
    others = {name: value for name, value in given.items() if name not in NETWORK_OPTIONS}
    for exported in export_network(others.pop("what"), **others, network=TestCNNConfig(**network)):
        print(exported, flush=True)
