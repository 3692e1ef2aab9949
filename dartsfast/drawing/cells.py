"""Cells as layered graphs."""

import copy
import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dartsfast.cnn.genotypes import Architecture
from dartsfast.cnn.genotypes import Genotype as CNNGenotype
from dartsfast.drawing.figure import FONT, INK, fit, full_axes, new_figure, save_figure
from dartsfast.drawing.layout import Box, Edge, Node, lay_out
from dartsfast.errors import InputError
from dartsfast.genotypes import CNN, RNN, as_genotype, check_cell

# Sizes are in inches: one data unit of a cell's axes is one inch of paper.
_NODE_HEIGHT, _LABEL_HEIGHT, _MARGIN = 0.42, 0.2, 0.25
_TIP_HEIGHT = 0.08  # from one arrowhead to the next at a node
_LABEL_SIZE, _NODE_SIZE, _TITLE_SIZE = 9, 12, 13
_FILL = {"input": ("#d8efd3", "#5b9a55"), "node": ("#d9e8f8", "#4a7fb5"), "output": ("#fbf0c4", "#bf9b30")}
_FAMILIES = {
    "sep": "#1f6fb4",
    "dil": "#7b4fb0",
    "conv": "#0b8a8f",
    "nor_conv": "#1f6fb4",
    "max": "#c0392b",
    "avg": "#c9701a",
    "skip": "#2e8b57",
    "identity": "#2e8b57",
    "tanh": "#1f6fb4",
    "relu": "#c0392b",
    "sigmoid": "#7b4fb0",
}
_PLAIN = "#8a8f98"


class Cell(NamedTuple):
    """A cell as a graph."""

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def draw_genotype(genotype: Any, path: str | os.PathLike) -> list[Path]:
    """Draw a CNN genotype (both cells), an RNN genotype or a cell of NAS-Bench-201 to the files of
    :func:`save_figure`.

    A CNN genotype has ``normal``, ``normal_concat``, ``reduce`` and ``reduce_concat``; an RNN genotype has
    ``recurrent`` and ``concat`` (DARTS, section 2.1 and appendix A); each in any form that
    :func:`dartsfast.genotypes.as_genotype` takes, of any operations. Returns the paths. ``InputError``
    for another object or an entry that names no earlier node.
    """
    return _draw_cells(cells_of(genotype), path)


def cells_of(genotype: Any) -> list[Cell]:
    """Return the cells of a genotype as graphs; ``InputError`` as :func:`draw_genotype`."""
    genotype = as_genotype(genotype)
    if isinstance(genotype, Architecture):
        return [_nasbench201_graph(genotype)]
    if isinstance(genotype, CNNGenotype):
        return [
            _cell_graph(genotype.normal, genotype.normal_concat, "Normal cell"),
            _cell_graph(genotype.reduce, genotype.reduce_concat, "Reduction cell"),
        ]
    return [_recurrent_graph(genotype.recurrent, genotype.concat, "Recurrent cell")]


def place(cell: Cell) -> tuple[list[Box], list[list[Box]]]:
    """Return a cell's boxes and the way of each edge through them; whoever draws them may shift them."""
    return copy.deepcopy(_placed(cell.nodes, cell.edges))


# A run draws its latest cell as a picture, then in its report: most of the time is that of the layout.
@functools.lru_cache(maxsize=8)
def _placed(nodes: tuple[Node, ...], edges: tuple[Edge, ...]) -> tuple[list[Box], list[list[Box]]]:
    return lay_out(nodes, edges)


def draw_cell(edges: Sequence[tuple[str, int]], path: str | os.PathLike) -> list[Path]:
    """Draw one CNN cell, every node of which reaches the output (``visualize.py`` of the DARTS code).

    ``edges`` is ``genotype.normal`` or ``genotype.reduce``: two ``(op, input)`` a node, inputs 0 and 1 being
    c_{k-2} and c_{k-1}. Returns the paths; ``InputError`` for an edge from no earlier node.
    """
    return _draw_cells([_cell_graph(edges, range(2, 2 + len(edges) // 2), "")], path)


def draw_recurrent(edges: Sequence[tuple[str, int]], path: str | os.PathLike) -> list[Path]:
    """Draw one recurrent cell, every node of which reaches the output (``visualize.py`` of the DARTS code).

    ``edges`` is ``genotype.recurrent``: one ``(activation, predecessor)`` a node, node 0 being the initial
    state. Returns the paths; ``InputError`` for an edge from no earlier node.
    """
    return _draw_cells([_recurrent_graph(edges, range(1, len(edges) + 1), "")], path)


def find_genotype(module: ModuleType, name: str) -> Any:
    """Return the published genotype called ``name`` in ``module``; ``InputError`` lists those it has."""
    known = {key: value for key, value in vars(module).items() if isinstance(value, tuple)}
    if name not in known:
        raise InputError(
            f"no genotype {name!r} in {module.__name__}; choose one of {', '.join(sorted(known))}"
        )
    return known[name]


def _cell_graph(entries: Any, concat: Any, title: str) -> Cell:
    checked, concat = check_cell(entries, concat, CNN, title.lower() or "cell")
    steps = len(checked) // 2
    edges = [_edge(op, source, 2 + k // 2) for k, (op, source) in enumerate(checked)]
    edges += [_edge("", node, 2 + steps) for node in sorted(set(concat))]
    return Cell(title, _nodes(("$c_{k-2}$", "$c_{k-1}$"), steps, "$c_k$", edges), tuple(edges))


def _recurrent_graph(entries: Any, concat: Any, title: str) -> Cell:
    checked, concat = check_cell(entries, concat, RNN, title.lower() or "cell")
    steps = len(checked)
    edges = [_edge("", 0, 2), _edge("", 1, 2)]
    edges += [_edge(op, source + 2, k + 3) for k, (op, source) in enumerate(checked)]
    edges += [_edge("", node + 2, steps + 3) for node in sorted(set(concat))]
    return Cell(title, _nodes(("$x_t$", "$h_{t-1}$"), steps + 1, "$h_t$", edges), tuple(edges))


def _nasbench201_graph(architecture: Architecture) -> Cell:
    """Return the cell without the edges that are ``none``."""
    into = architecture.nodes()
    edges = [
        _edge(op, source, node + 1)
        for node, entries in enumerate(into)
        for op, source in entries
        if op != "none"
    ]
    return Cell("Cell", _nodes(("0",), 2, "3", edges, first=1), tuple(edges))


def _nodes(
    inputs: tuple[str, ...], steps: int, output: str, edges: list[Edge], first: int = 0
) -> tuple[Node, ...]:
    """Return the boxes of a cell, high enough for the arrowheads of the edges that they receive."""
    kinds = [(name, "input", 0.7) for name in inputs]
    kinds += [(str(step), "node", 0.48) for step in range(first, first + steps)]
    kinds.append((output, "output", 0.7))
    arrows = Counter(edge.target for edge in edges)
    return tuple(
        Node(text, kind, width, max(_NODE_HEIGHT, (arrows[k] + 1) * _TIP_HEIGHT))
        for k, (text, kind, width) in enumerate(kinds)
    )


def _edge(op: str, source: int, target: int) -> Edge:
    # 0.62 em is the mean width of a letter of DejaVu Sans.
    return Edge(source, target, op, 0.62 * _LABEL_SIZE / 72 * len(op) + 0.1, _LABEL_HEIGHT)


def _draw_cells(cells: list[Cell], path: str | os.PathLike) -> list[Path]:
    """Draw the cells one below the other on a figure whose data unit is an inch."""
    figure = new_figure(facecolor="white")
    ax = full_axes(figure)
    right, bottom = 0.0, _MARGIN
    for cell in cells:
        boxes, ways = place(cell)
        if cell.title:
            style = {"fontsize": _TITLE_SIZE, "weight": "bold", "color": INK, **FONT}
            ax.text(_MARGIN, bottom, cell.title, va="top", **style)
            bottom += 0.4
        shift = bottom - min(box.y - box.height / 2 for box in boxes)
        for box in boxes:
            box.x, box.y = box.x + _MARGIN, box.y + shift
        for way, tip in zip(ways, tips_of(ways), strict=True):
            _draw_edge(ax, way, tip)
        for box in boxes:
            _draw_box(ax, box)
        right = max(right, *(box.x + box.width / 2 + _MARGIN for box in boxes))
        bottom = max(box.y + box.height / 2 + _MARGIN for box in boxes)
    fit(figure, ax, right, bottom)
    return save_figure(figure, path)


def tips_of(ways: list[list[Box]]) -> list[float]:
    """Return the height at which each edge reaches its target: one below the other, by where they come from.

    So no arrowhead covers another, and edges into one node do not cross on their last bit.
    """
    tips = [0.0] * len(ways)
    for target in {way[-1]: None for way in ways}:
        arriving = sorted((k for k in range(len(ways)) if ways[k][-1] is target), key=lambda k: ways[k][-2].y)
        for place, k in enumerate(arriving):
            tips[k] = target.y + (place - (len(arriving) - 1) / 2) * _TIP_HEIGHT
    return tips


def _draw_edge(ax: Any, way: list[Box], tip: float) -> None:
    """Draw an edge as a smooth curve, level where it crosses a column, in the colour of its op."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    kinds = {"M": Curve.MOVETO, "C": Curve.CURVE4, "L": Curve.LINETO}
    steps = [(kinds[kind], point) for kind, points in curve(way, tip) for point in points]
    ax.add_artist(
        FancyArrowPatch(
            path=Curve([point for _, point in steps], [code for code, _ in steps]),
            arrowstyle="-|>",
            mutation_scale=9,
            shrinkB=0,
            color=color_of(way[-2].text),
            linewidth=1.2,
            zorder=1,
        )
    )


def curve(way: list[Box], tip: float) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return an edge as commands of an SVG path with their points; it arrives level, at height ``tip``."""
    at = (way[0].x + way[0].width / 2, way[0].y)
    commands = [("M", [at])]
    # A column without labels has no width before its passing edges and lets them through as they come.
    for box in [box for box in way[1:] if box.width]:
        (x, y), enter, leave = at, box.x - box.width / 2, box.x + box.width / 2
        middle, height = (x + enter) / 2, tip if box is way[-1] else box.y
        commands.append(("C", [(middle, y), (middle, height), (enter, height)]))
        if box is not way[-1]:
            at = (leave, box.y)
            commands.append(("L", [at]))
    return commands


def _draw_box(ax: Any, box: Box) -> None:
    """Draw a node as a filled box, a label as text on white, a passing edge not at all."""
    from matplotlib.patches import FancyBboxPatch

    if box.kind in _FILL:
        fill, rim = _FILL[box.kind]
        corner = (box.x - box.width / 2, box.y - box.height / 2)
        style = "round,pad=0,rounding_size=0.1"
        ax.add_artist(
            FancyBboxPatch(corner, box.width, box.height, boxstyle=style, fc=fill, ec=rim, lw=1.4, zorder=3)
        )
        centred = {"ha": "center", "va": "center", "color": INK, "zorder": 4}
        ax.text(box.x, box.y, box.text, fontsize=_NODE_SIZE, **centred, **FONT)
    elif box.kind == "label":
        ax.text(
            box.x,
            box.y,
            box.text,
            fontsize=_LABEL_SIZE,
            color=color_of(box.text),
            ha="center",
            va="center_baseline",
            parse_math=False,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"},
            zorder=2,
            **FONT,
        )


def color_of(op: str) -> str:
    """Return the colour of an operation's family."""
    return next((color for family, color in _FAMILIES.items() if op.startswith(family)), _PLAIN)
