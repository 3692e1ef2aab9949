"""Architecture weights as heat maps."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dartsfast.drawing.figure import FONT, INK, add_numbers, fit, full_axes, new_figure, save_figure
from dartsfast.errors import InputError

# In inches: a cell of the heat map, the gaps before ``none`` and between the edges of two nodes, the place
# of the edges' names, and of the legend below the cells.
_CELL, _NONE_GAP, _NODE_GAP = (0.48, 0.26), 0.14, 0.09
_NAMES, _FOOT, _MARGIN = 0.85, 0.55, 0.2
_MAP, _GREY = "YlGnBu", "#8a8f98"
_STEP = 0.1  # percent, the last digit shown; the colour scale is no finer than ten of these


class _Panel(NamedTuple):
    name: str
    percent: np.ndarray  # [edges, ops], softmax(alpha)
    ops: Sequence[str]
    edges: Sequence[str]
    taken: set[tuple[int, int]]  # (row, column) of what the genotype keeps
    x: list[float]  # left side of every column
    y: list[float]  # upper side of every row


def draw_alphas(
    alphas: Mapping[str, tuple],
    path: str | os.PathLike,
    *,
    title: str = "",
) -> list[Path]:
    """Draw softmax(alpha), the weight of every op on every edge, as one heat map a name.

    The strongest op of every edge other than ``none`` is underlined, and what a genotype keeps is framed.

    Args:
        alphas: panel name to ``(alpha, ops, edges)`` or ``(alpha, ops, edges, entries)``: raw weights
            ``[len(edges), len(ops)]`` (tensor or array); op names; edge labels such as ``"0→2"`` or
            ``"c_{k-1}→2"``, those into one node together and by input; and a genotype's ``(op, input)``,
            of all edges, or as many for every node.
        path: of the files of :func:`save_figure`.
        title: above the panels.

    Returns:
        The paths.

    Raises:
        InputError: shapes that do not fit, or weights whose softmax is not a number.
    """
    if not alphas:
        raise InputError("draw_alphas got no alphas; pass at least one name -> (alpha, ops, edges)")
    figure = new_figure(facecolor="white")
    ax = full_axes(figure)
    left, panels = _MARGIN, []
    head = _MARGIN + (0.4 if title else 0.0)
    top = head + 0.4 + 0.045 * max(len(op) for entry in alphas.values() for op in entry[1])
    for name, entry in alphas.items():
        panels.append(_panel(name, *entry, left=left + _NAMES, top=top))
        left = max(panels[-1].x) + _CELL[0] + _MARGIN
    shown = np.concatenate([p.percent[:, real_ops(p.ops)].ravel() for p in panels])
    low, high = float(shown.min()), float(shown.max())
    if high - low < 10 * _STEP:
        low, high = (low + high) / 2 - 5 * _STEP, (low + high) / 2 + 5 * _STEP
    for panel in panels:
        _draw_panel(ax, panel, low, high)
        _write(ax, min(panel.x), head, panel.name, ha="left", va="top", fontsize=11)
    bottom = max(panel.y[-1] for panel in panels) + _CELL[1]
    width = max(left, _MARGIN + _NAMES + 4.6)
    _draw_legend(ax, low, high, _MARGIN + _NAMES, bottom + 0.22, framed=any(p.taken for p in panels))
    if title:
        _write(ax, _MARGIN, _MARGIN, title, ha="left", va="top", fontsize=13, weight="bold")
    fit(figure, ax, width, bottom + _FOOT + _MARGIN)
    return save_figure(figure, path)


def _panel(
    name: str, alpha: Any, ops: Sequence[str], edges: Sequence[str], entries: Sequence[tuple[str, int]] = (),
    *, left: float, top: float,
) -> _Panel:  # fmt: skip
    percent = 100 * _softmax(name, alpha, ops, edges)
    nodes = list(dict.fromkeys(_ends(edge)[1] for edge in edges))
    taken = kept_places(ops, edges, entries)
    order = np.argsort([op == "none" for op in ops], kind="stable")  # none last
    x, y = [0.0] * len(ops), [0.0] * len(edges)
    for place, column in enumerate(order):
        x[column] = left + place * _CELL[0] + (_NONE_GAP if ops[column] == "none" else 0.0)
    for k, edge in enumerate(edges):
        y[k] = top + k * _CELL[1] + nodes.index(_ends(edge)[1]) * _NODE_GAP
    return _Panel(name, percent, ops, edges, taken, x, y)


def kept_places(
    ops: Sequence[str], edges: Sequence[str], entries: Sequence[tuple[str, int]]
) -> set[tuple[int, int]]:
    """Return (edge, op) of what a genotype's ``entries`` keep: all edges, or as many for every node."""
    rows: dict[str, list[int]] = {}
    for row, edge in enumerate(edges):
        rows.setdefault(_ends(edge)[1], []).append(row)
    few = len(entries) // len(rows)
    left, kept = iter(entries), set()
    for mine in rows.values():
        into = itertools.islice(left, len(mine) if len(entries) == len(edges) else few)
        kept |= {(mine[source], ops.index(op)) for op, source in into}
    if list(left):
        raise InputError(f"{len(entries)} entries of a genotype do not go around {len(rows)} nodes evenly")
    return kept


def _ends(edge: str) -> tuple[str, str]:
    source, arrow, target = edge.partition("→")
    return source, target if arrow else ""


def real_ops(ops: Sequence[str]) -> list[int]:
    """Return the columns of operations that a genotype can keep; of nothing but ``none``, that."""
    return [k for k, op in enumerate(ops) if op != "none"] or [0]


def _draw_panel(ax: Any, panel: _Panel, low: float, high: float) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection, PolyCollection

    shades = colormaps[_MAP](0.05 + 0.9 * np.clip((panel.percent - low) / (high - low), 0, 1))
    shades[:, [k for k, op in enumerate(panel.ops) if op == "none"]] = (0.95, 0.95, 0.95, 1.0)
    places = [(row, column) for row in range(len(panel.edges)) for column in range(len(panel.ops))]
    boxes = [_box(panel.x[column], panel.y[row]) for row, column in places]
    colors = [shades[place] for place in places]
    ax.add_artist(PolyCollection(boxes, facecolors=colors, edgecolors="white", linewidths=1.0, zorder=1))
    real = real_ops(panel.ops)
    best = {(row, real[int(panel.percent[row, real].argmax())]) for row in range(len(panel.edges))}
    inks = ["white" if shades[place][:3] @ (0.3, 0.59, 0.11) < 0.55 else INK for place in places]
    inks = [
        _GREY if panel.ops[column] == "none" else ink for (_, column), ink in zip(places, inks, strict=True)
    ]
    middles = [(panel.x[column] + _CELL[0] / 2, panel.y[row] + _CELL[1] / 2) for row, column in places]
    numbers = [f"{panel.percent[place]:.1f}" for place in places]
    add_numbers(ax, middles, numbers, inks)
    lines = [_underline(panel.x[column], panel.y[row]) for row, column in best]
    colors = [inks[places.index(place)] for place in best]
    ax.add_artist(LineCollection(lines, colors=colors, linewidths=0.9, zorder=2))
    frames = [_box(panel.x[column], panel.y[row]) for row, column in panel.taken]
    ax.add_artist(_frames(frames))
    _draw_edge_names(ax, panel)
    for op, x in zip(panel.ops, panel.x, strict=True):
        style: dict[str, Any] = {"color": _GREY, "style": "italic"} if op == "none" else {}
        corner = (x + _CELL[0] / 2 - 0.05, panel.y[0] - 0.05)
        _write(ax, *corner, op, ha="left", va="bottom", rotation=40, rotation_mode="anchor", **style)


def _draw_edge_names(ax: Any, panel: _Panel) -> None:
    """Write the edges as in the picture of the cell, arrows one below the other."""
    right = min(panel.x) - 0.08
    arrows, numbers = {}, {}
    for edge, y in zip(panel.edges, (y + _CELL[1] / 2 for y in panel.y), strict=True):
        source, target = _ends(edge)
        places = {right - 0.38: source, right - 0.045: target} if target else {right - 0.045: source}
        if target:
            arrows[right - 0.2, y] = "→"
        for x, name in places.items():
            if name.isdecimal() and name.isascii() and len(name) == 1:
                numbers[x, y] = name
            else:
                # Few formulas, often repeated: matplotlib takes long to read one.
                text = {"text": f"${name}$", "parse_math": True} if "_{" in name else {"text": name}
                _write(ax, x + 0.045, y, **text, ha="right", fontsize=9)
    for marks, color, size in ((arrows, _GREY, 8), (numbers, INK, 9)):
        add_numbers(ax, list(marks), list(marks.values()), [color] * len(marks), size)


def _draw_legend(ax: Any, low: float, high: float, x: float, y: float, *, framed: bool) -> None:
    """Draw the colour scale with its ends, and what the marks mean."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    height = 0.13
    shades = colormaps[_MAP](np.linspace(0.05, 0.95, 64))[None]
    ax.imshow(shades, extent=(x, x + 1.1, y + height, y), aspect="auto", interpolation="nearest", zorder=1)
    _write(ax, x, y + height + 0.12, f"{low:.1f}", fontsize=7)
    _write(ax, x + 1.1, y + height + 0.12, f"{high:.1f}", fontsize=7)
    _write(ax, x + 0.55, y + height + 0.12, "softmax(α), %", fontsize=7)
    x += 1.5
    mark = (x, y - 0.02, 0.3, 0.18)
    ax.add_artist(LineCollection([_underline(*mark)], colors=INK, linewidths=0.9))
    _write(ax, x + 0.38, y + height / 2, "strongest of its edge", ha="left", fontsize=8)
    if framed:
        x += 1.75
        ax.add_artist(_frames([_box(x, y - 0.02, 0.3, 0.18)]))
        _write(ax, x + 0.38, y + height / 2, "in the genotype", ha="left", fontsize=8)


def _box(x: float, y: float, width: float = _CELL[0], height: float = _CELL[1]) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def _underline(x: float, y: float, width: float = _CELL[0], height: float = _CELL[1]) -> list:
    middle, level = x + width / 2, y + height - 0.035
    return [(middle - 0.1, level), (middle + 0.1, level)]


def _frames(boxes: list) -> Any:
    from matplotlib.collections import PolyCollection

    return PolyCollection(boxes, facecolors="none", edgecolors="#d62728", linewidths=1.6, zorder=3)


def _write(ax: Any, x: float, y: float, text: str, **style: Any) -> None:
    defaults = {"ha": "center", "va": "center", "fontsize": 8, "color": INK, "parse_math": False, "zorder": 4}
    ax.text(x, y, text, **defaults | FONT | style)


def _softmax(name: str, alpha: Any, ops: Sequence[str], edges: Sequence[str]) -> np.ndarray:
    import torch  # cells are drawn without

    raw = torch.as_tensor(alpha).detach()
    if raw.shape != (len(edges), len(ops)):
        raise InputError(
            f"alphas {name!r} have shape {tuple(raw.shape)} for {len(edges)} edges and {len(ops)} ops; "
            "pass one row an edge and one column an op"
        )
    weights = raw.double().softmax(dim=-1).cpu().numpy()
    if not weights.size or np.isnan(weights).any():
        raise InputError(
            f"alphas {name!r} have no softmax (empty, NaN or infinite); draw them before they diverge"
        )
    return weights
