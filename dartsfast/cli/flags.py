"""Flags that several commands have."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from dartsfast.parsing import METAVARS
from dartsfast.runs.detail import QUIET, VERBOSE
from dartsfast.verbs import VERBS, WITHOUT_EFFECT


def add_detail(group: Any, verbose_help: str) -> None:
    """Add ``--quiet`` and ``--verbose``."""
    detail = group.add_mutually_exclusive_group()
    for flag, help_ in ((QUIET, "say only errors and the last sentence"), (VERBOSE, verbose_help)):
        detail.add_argument(f"--{flag}", dest="detail", action="store_const", const=flag, help=help_)


def add_preset(group: Any, config: Any, only: Collection[str] = ()) -> None:
    """Add ``--preset``, or in a selection ``--train_preset``, where the options have protocols.

    ``only`` names the options that the command has; empty: all.
    """
    if not hasattr(config, "protocols"):
        return
    changes = (
        f"{name}: {' '.join(f'--{key} {value}' for key, value in options.items() if not only or key in only)}"
        for name, options in ((name, config.protocol(name)) for name in config.protocols)
    )
    group.add_argument(
        f"--{config.protocol_prefix}preset", dest="preset", choices=config.protocols,
        help=f"options that go together ({'; '.join(changes)})",
    )  # fmt: skip


def add_old_flags(command: Any, verb: str, kind: str) -> None:
    """Add the flags of the original's script that have no effect here."""
    old = command.add_argument_group("old flags without effect", "accepted, as in the original")
    for name, type_ in WITHOUT_EFFECT[verb, kind].items():
        kwargs: dict[str, Any] = (
            {"action": "store_true"} if type_ is None else {"type": type_, "metavar": METAVARS.get(type_)}
        )
        old.add_argument(f"--{name}", **kwargs)


def drop_old_flags(given: dict[str, Any], verb: str, kind: str) -> None:
    """Take those flags out of what was given, aloud."""
    for name in WITHOUT_EFFECT.get((verb, kind), {}):
        if given.pop(name.replace("-", "_"), None) is not None:
            noun = VERBS[verb].noun if verb in VERBS else verb
            print(f"dartsfast: --{name} has no effect on a {noun}", file=sys.stderr)
