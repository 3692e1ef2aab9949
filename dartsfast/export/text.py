"""Python code as ``ruff format`` and black write it, at 88 characters a line and at more."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable

from dartsfast.errors import InputError

WIDTH = 88


def listed(name: str, items: Iterable[str], indent: int = 0) -> str:
    """Return the assignment of a list to ``name``: a line, or a line an item where it would be too long."""
    items, margin = list(items), " " * indent
    line = f"{margin}{name} = [{', '.join(items)}]"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{margin}{name} = [", *(f"{margin}    {item}," for item in items), f"{margin}]"])


def quoted(text: str) -> str:
    """Return ``text`` as a literal in the quotes that formatters choose."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if "'" not in text and '"' not in text else literal


def wrapped(text: str) -> str:
    """Return ``text`` in lines of a docstring."""
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def check_known(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise InputError for the first of ``names`` that there is no text of."""
    for name in names:
        if name not in known:
            raise InputError(
                f"the {what} {name!r} is of your own, and files are written of {', '.join(known)}"
            )
