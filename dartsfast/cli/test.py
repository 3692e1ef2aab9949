"""``dartsfast test``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from dartsfast.cli.flags import add_detail, add_old_flags, add_preset, drop_old_flags
from dartsfast.errors import InputError
from dartsfast.parsing import add_field
from dartsfast.runs.detail import NORMAL, saying
from dartsfast.runs.options import GROUPS
from dartsfast.verbs import TESTS

VERBOSE_HELP = "what is tested too, on what, and how long it took"


def add(commands: Any) -> None:
    """Add the command."""
    kinds = commands.add_parser("test", help="test a trained network").add_subparsers(
        required=True, metavar="KIND"
    )
    for kind, config in TESTS.items():
        command = kinds.add_parser(
            kind, help=f"test a trained {kind.upper()}", argument_default=argparse.SUPPRESS
        )
        command.add_argument("folder", nargs="?", help="the folder of a training: the same as --model_path")
        groups = {name: command.add_argument_group(name) for name in GROUPS if name != "optimisation"}
        for field in dataclasses.fields(config):
            add_field(groups[field.metadata["group"]], field)
        add_preset(groups["network"], config)
        groups["run"].add_argument("--gpu", type=int, metavar="N", help="the same as --device cuda:N")
        add_detail(groups["run"], VERBOSE_HELP)
        add_old_flags(command, "test", kind)
        command.set_defaults(run=_run, kind=kind, config=config)


def _run(args: argparse.Namespace) -> None:
    from dartsfast import train

    given = dict(vars(args))
    kind, config = given.pop("kind"), given.pop("config")
    del given["run"]
    if "gpu" in given:
        given["device"] = f"cuda:{given.pop('gpu')}"
    drop_old_flags(given, "test", kind)
    folder = given.pop("folder", None)
    if folder is not None and given.setdefault("model_path", folder) != folder:
        raise InputError(f"two networks to test, {folder} and {given['model_path']}: name one")
    detail = given.pop("detail", NORMAL)
    if "preset" in given:
        given = {**config.protocol(given.pop("preset")), **given}
    with saying(detail):
        print(getattr(train, f"test_{kind}")(config(**given)))
