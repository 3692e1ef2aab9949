"""Genotypes in every form that people hold, and the one check that all users of a genotype make."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.errors import InputError
from dartsfast.genotypes.text import looks_like_genotype, parse_genotype, with_ranges
from dartsfast.rnn import genotypes as rnn_genotypes

AnyGenotype = cnn_genotypes.Genotype | rnn_genotypes.Genotype | cnn_genotypes.Architecture


class Kind(NamedTuple):
    """What the cells of one kind of network have in common.

    Attributes:
        name: of the network.
        inputs: states before the first node, and edges a node: two each, or one.
        first: first state that may be part of the output.
        state: what an edge's index counts.
        operation: what an edge's name names.
        command: made for them.
    """

    name: str
    inputs: int
    first: int
    state: str
    operation: str
    command: str


CNN = Kind("CNN", 2, 2, "input", "operation", "train cnn")
RNN = Kind("RNN", 1, 0, "state", "activation", "train rnn")
NB201 = Kind("NAS-Bench-201 network", 1, 1, "node", "operation", "query nasbench201")
TYPES: dict[Kind, Any] = {
    CNN: cnn_genotypes.Genotype,
    RNN: rnn_genotypes.Genotype,
    NB201: cnn_genotypes.Architecture,
}


def as_genotype(value: Any, kind: Kind | None = None, known: Collection[str] | None = None) -> Any:
    """Return ``value`` as a ``Genotype`` of this package, checked.

    Args:
        value: an object with the fields of a genotype, such as a ``Genotype``, also of other code; a dict of
            them, as JSON loads it; a list of their values in order, as JSON writes named tuples; text, which
            is ``Genotype(...)``, JSON, the name of a published cell, or a cell of NAS-Bench-201 as the
            benchmark writes it.
        kind: ``CNN``, ``RNN`` or ``NB201`` where the others will not do.
        known: the names that edges may have; None for any.

    Returns:
        A ``cnn.genotypes.Genotype`` or ``rnn.genotypes.Genotype`` of lists of ``(name, index)``; a concat is
        a list, or the range that was given. Or a ``cnn.genotypes.Architecture``.

    Raises:
        InputError: no genotype, or one of the other kind; an unknown name; another number of edges than two a
            node (CNN); an index that is no earlier state; a concat that is empty or names no state.
    """
    if isinstance(value, str):
        value = parse_genotype(value) if looks_like_genotype(value) else _published(value, kind)
    fields = _fields(value)
    found = next(one for one, made in TYPES.items() if made._fields == tuple(fields))
    if kind is not None and kind != found:
        raise InputError(
            f"a cell of {found.name}s (fields {', '.join(fields)}) is none of {kind.name}s (fields "
            f"{', '.join(TYPES[kind]._fields)}): name another one, or use what is made for {found.name}s, "
            f"such as `dartsfast {found.command}`"
        )
    if found == NB201:
        return _check_architecture(fields["architecture"], known)
    if found == RNN:
        cell = check_cell(fields["recurrent"], fields["concat"], RNN, "recurrent cell", known)
        return rnn_genotypes.Genotype(*cell)
    normal = check_cell(fields["normal"], fields["normal_concat"], CNN, "normal cell", known)
    reduction = check_cell(fields["reduce"], fields["reduce_concat"], CNN, "reduction cell", known)
    return cnn_genotypes.Genotype(*normal, *reduction)


def check_cell(
    edges: Any, concat: Any, kind: Kind, cell: str, known: Collection[str] | None = None
) -> tuple[list[tuple[str, int]], Sequence[int]]:
    """Return the edges and the concat of one cell, called ``cell`` in errors, as :func:`as_genotype` does."""
    each = "two (op name, input index)" if kind == CNN else "one (activation name, state index)"
    if not isinstance(edges, (list, tuple)) or not edges or len(edges) % kind.inputs:
        count = f", got {len(edges)}" if isinstance(edges, (list, tuple)) else ""
        raise InputError(f"the edges of the {cell} are {_shown(edges)}: list {each} a node{count}")
    checked = []
    for place, edge in enumerate(edges):
        earlier = kind.inputs + place // kind.inputs
        try:
            checked.append(_check_edge(edge, earlier, kind, known))
        except InputError as error:
            raise InputError(f"{cell} entry {place} is {_shown(edge)}: {error}") from None
    last = kind.inputs + len(edges) // kind.inputs - 1
    return checked, _check_concat(concat, kind.first, last, cell)


def _check_edge(edge: Any, earlier: int, kind: Kind, known: Collection[str] | None) -> tuple[str, int]:
    if not (isinstance(edge, (tuple, list)) and len(edge) == 2):
        raise InputError(f"make it a pair ({kind.operation} name, {kind.state} index)")
    name, source = edge
    if isinstance(source, str) and _is_index(name):
        raise InputError(f"the two are swapped, write ({source!r}, {name})")
    if not isinstance(name, str):
        raise InputError(f"the {kind.operation}'s name must be a string")
    if not (_is_index(source) and 0 <= source < earlier):
        raise InputError(
            f"it takes {kind.state} {_shown(source)}, which must be an index from 0 to {earlier - 1}"
        )
    if known is not None and name not in known:
        raise InputError(f"unknown {kind.operation} {name!r}, known are {', '.join(known)}")
    return name, int(source)


def _check_architecture(text: Any, known: Collection[str] | None) -> cnn_genotypes.Architecture:
    cell = cnn_genotypes.Architecture(text.strip() if isinstance(text, str) else "")
    nodes = cell.nodes()
    sources = [[source for _, source in node] for node in nodes]
    if cnn_genotypes.Architecture.of(nodes) != cell or sources != [[0], [0, 1], [0, 1, 2]]:
        raise InputError(
            f"{_shown(text)} is no cell of NAS-Bench-201: write the operations of all six edges as "
            "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        )
    for op, _ in itertools.chain(*nodes):
        if known is not None and op not in known:
            raise InputError(f"unknown operation {op!r}, known are {', '.join(known)}")
    return cell


def _check_concat(concat: Any, first: int, last: int, cell: str) -> Sequence[int]:
    if isinstance(concat, (str, Mapping)) or not isinstance(concat, Iterable) or not (nodes := list(concat)):
        raise InputError(
            f"the concat of the {cell} is {_shown(concat)}: list the nodes that make its output, "
            f"from {first} to {last}"
        )
    for node in nodes:
        if not (_is_index(node) and first <= node <= last):
            raise InputError(
                f"the concat of the {cell} names node {_shown(node)}; its nodes run from {first} to {last}"
            )
    return concat if isinstance(concat, range) else [int(node) for node in nodes]


def _is_index(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a genotype of either kind by name."""
    for kind in TYPES.values():
        names = kind._fields
        if isinstance(value, Mapping):
            if set(value) == set(names):
                return {name: value[name] for name in names}
        elif all(hasattr(value, name) for name in names):
            return {name: getattr(value, name) for name in names}
        elif isinstance(value, (list, tuple)) and len(value) == len(names) and _is_edges(value[0]):
            return dict(zip(names, value, strict=True))
    raise InputError(
        "no genotype: expected the fields "
        + " or ".join(", ".join(kind._fields) for kind in TYPES.values())
        + f", got {_shown(value)}"
    )


def _is_edges(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(edge, (list, tuple)) for edge in value)


def _shown(value: Any) -> str:
    """Return ``repr(value)``, cut where it is long or deep."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python likes to print
        return f"a huge {type(value).__name__}"


def genotype_to_json(genotype: AnyGenotype) -> dict[str, Any]:
    """Return the fields of ``genotype`` as plain lists, or as the text that one is."""
    return {
        name: value
        if isinstance(value, str)
        else [list(entry) if isinstance(entry, tuple) else entry for entry in value]
        for name, value in genotype._asdict().items()
    }


def genotype_from_json(fields: Any) -> AnyGenotype:
    """Return the genotype that :func:`genotype_to_json` wrote, as a search gives it (:func:`.with_ranges`).

    Errors are those of :func:`as_genotype`.
    """
    return as_genotype(with_ranges(fields) if isinstance(fields, dict) else fields)


def published() -> dict[str, AnyGenotype]:
    """Return the published cells by ``cnn:NAME`` and ``rnn:NAME``."""
    modules = {"cnn": cnn_genotypes, "rnn": rnn_genotypes}
    return {
        f"{kind}:{name}": value
        for kind, module in modules.items()
        for name, value in vars(module).items()
        if isinstance(value, module.Genotype)
    }


def _published(name: str, kind: Kind | None = None) -> AnyGenotype:
    known = published()
    for prefix in ("", "rnn:") if kind == RNN else ("", "cnn:", "rnn:"):
        if prefix + name in known:
            return known[prefix + name]
    if kind == NB201:
        raise InputError(
            f"no cell of NAS-Bench-201 {_shown(name)}: give the folder of a search with --space nasbench201, "
            "its genotype.json, or the operations of all six edges as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        )
    own = {CNN: "cnn:", RNN: "rnn:", None: ""}[kind]
    raise InputError(
        f"no genotype {_shown(name)}: give the folder of a run, a genotype.json, Genotype(...) as a search "
        f"prints it, or one of {', '.join(name for name in known if name.startswith(own))}"
    )
