"""Genotypes in text: ``Genotype(normal=[...], ...)`` as searches and logs print it, JSON, and cells of
NAS-Bench-201."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from dartsfast.errors import InputError

_PRINTED = re.compile(r"\bGenotype\s*\(")
_FIELDS = {4: ("normal", "normal_concat", "reduce", "reduce_concat"), 2: ("recurrent", "concat")}
_LONGEST = 100_000  # characters; the parsers of Python recurse
_LARGEST = 1000  # nodes of a range


def looks_like_genotype(text: str) -> bool:
    """Whether ``text`` is meant as a genotype, not as a name or path."""
    return bool(_PRINTED.search(text)) or text.lstrip()[:1] in ("{", "[", "|")


def parse_genotype(text: str) -> Any:
    """Return the fields that ``text`` writes, of lists, strings and numbers, unchecked. Nothing is executed.

    Args:
        text: ``Genotype(...)`` with literals and ``range(...)`` only, after anything else, such as the time
            and ``genotype =`` of a log; JSON in which no key appears twice, read :func:`with_ranges`; or
            ``|op~0|+...``, a cell of NAS-Bench-201.

    Raises:
        InputError: neither.
    """
    if not text.strip():
        raise InputError("an empty text is no genotype: give Genotype(...) or JSON")
    if len(text) > _LONGEST:
        raise InputError(f"a text of {len(text)} characters is no genotype: give Genotype(...) or JSON alone")
    if text.lstrip().startswith("|"):
        return {"architecture": text.strip()}
    printed = _PRINTED.search(text)
    try:
        if printed is None:
            return json.loads(text, object_pairs_hook=lambda pairs: with_ranges(_without_duplicates(pairs)))
        return _arguments(ast.parse(text[printed.start() :].strip(), mode="eval").body)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"the genotype is not JSON ({error}): give Genotype(...) or JSON") from error
    # SyntaxError: no Python. ValueError: a number of thousands of digits. The others: nested too deeply.
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"the genotype cannot be read ({error}): give one Genotype(...), as a search prints it, or JSON"
        ) from error


def with_ranges(fields: dict[str, Any]) -> dict[str, Any]:
    """Return ``fields`` with a concat that lists nodes in a row as the range that a search gives.

    JSON has no ranges, and ``[2, 3, 4, 5] != range(2, 6)``.
    """
    return {
        name: range(value[0], value[-1] + 1) if name.endswith("concat") and _in_a_row(value) else value
        for name, value in fields.items()
    }


def _in_a_row(value: Any) -> bool:
    if not (isinstance(value, list) and value and all(type(node) is int for node in value)):
        return False
    return all(after == before + 1 for before, after in pairwise(value))


def _without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"the genotype has {key!r} twice: leave one out")
        found[key] = value
    return found


def _arguments(call: ast.expr) -> dict[str, Any]:
    if not isinstance(call, ast.Call):
        raise InputError("the genotype is more than one Genotype(...): give that alone")
    names = _FIELDS.get(len(call.args), ()) if not call.keywords else ()
    if call.args and not names:
        raise InputError("the genotype has fields without a name: write normal=[...] and so on")
    named = ((str(keyword.arg), keyword.value) for keyword in call.keywords)
    fields = _without_duplicates([*zip(names, call.args, strict=True), *named])
    return {name: _literal(value) for name, value in fields.items()}


def _literal(node: ast.expr) -> Any:
    """Return a list, string or number that ``node`` writes, or else raise InputError."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(element) for element in node.elts]
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if isinstance(value, (int, float)):
            return -value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        bounds = [_literal(argument) for argument in node.args]
        if 1 <= len(bounds) <= 3 and all(type(b) is int and abs(b) <= _LARGEST for b in bounds):
            return range(*bounds)
    raise InputError(
        f"the genotype holds {ast.unparse(node)[:60]!r}: only lists, tuples, names in quotes, numbers and "
        "range(...) can stand there"
    )
