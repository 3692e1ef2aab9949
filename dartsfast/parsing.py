"""Options on a command line: declared as fields, refused by the command that they were given to."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from typing import Any, NoReturn

METAVARS: dict[type, str] = {int: "N", float: "X"}


class Command(argparse.ArgumentParser):
    """A parser that answers for its own options, with its own usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is not known, which argparse would leave to the parser above."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        return namespace, unknown

    def _refuse(self, unknown: list[str]) -> NoReturn:
        flag = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def add_field(group: Any, field: dataclasses.Field) -> None:
    """Add the option of a field; with hyphens for underscores it is known too, but not shown twice."""
    text, choices, default = field.metadata["help"], field.metadata["choices"], field.default
    how: dict[str, Any]
    if default is None:  # yes, no, or left alone
        how = {"action": argparse.BooleanOptionalAction}
    elif isinstance(default, bool):
        how = {"action": "store_true"}
    elif isinstance(default, tuple):
        how = {"nargs": len(default), "metavar": "NAME"}
        text += f" (default: {' '.join(default)})"
    else:
        how = {"type": type(default), "choices": choices or None}
        how["metavar"] = None if choices else METAVARS.get(type(default))
        text += f" (default: {default})" if default != "" else ""
    group.add_argument(f"--{field.name}", help=text.replace("%", "%%"), **how)
    if "_" in field.name:
        hyphened = f"--{field.name.replace('_', '-')}"
        group.add_argument(hyphened, dest=field.name, help=argparse.SUPPRESS, **how)
