"""Cells and curves as SVG that lies in a page, whose style sheet gives them their colours and fonts."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from dartsfast.drawing.cells import Cell, cells_of, color_of, curve, place, tips_of
from dartsfast.drawing.layout import Box

_INCH = 84  # CSS pixels that a cell's inch takes, so that its labels are as large as the page's small print
_MARGIN = 0.1  # inches
_LETTER = 7.0  # pixels that a letter of a label takes, at most, on the mean
_TIP = (6.0, 3.0)  # length and half the width of an arrowhead, in pixels
_INDEX = re.compile(r"\$(\w)_\{?([^}$]+)\}?\$")  # c_{k-1}, as the cells name their inputs

# Of a panel of curves, in pixels: its size, and the margins left, right, above and below of its axes.
_PANEL, _AXES = (340, 220), (46, 10, 28, 34)
_POINTS = 40  # up to so many are marked


class Line(NamedTuple):
    """A line of a panel: its name, the class that gives it its colour, and points (epoch, value)."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def inline_cells(genotype: Any) -> list[tuple[str, str]]:
    """Return (title, SVG) of every cell of a genotype; ``InputError`` as :func:`draw_genotype`."""
    return [(cell.title, _cell(cell)) for cell in cells_of(genotype)]


@functools.lru_cache(maxsize=8)  # the page of a run is written again every epoch
def _cell(cell: Cell) -> str:
    boxes, ways = place(cell)
    shift = min(box.y - box.height / 2 for box in boxes) - _MARGIN
    width = _INCH * (max(box.x + box.width / 2 for box in boxes) + 2 * _MARGIN)
    height = _INCH * (max(box.y + box.height / 2 for box in boxes) - shift + _MARGIN)

    def at(x: float, y: float) -> tuple[float, float]:
        return _INCH * (x + _MARGIN), _INCH * (y - shift)

    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    parts = [f'<svg class="cell" role="img" aria-label="{escape(cell.title)}" {size}>']
    for way, tip in zip(ways, tips_of(ways), strict=True):
        commands = [(kind, [at(*point) for point in points]) for kind, points in curve(way, tip)]
        (x, y) = commands[-1][1][-1]
        commands[-1][1][-1] = (x - _TIP[0] / 2, y)  # the line ends within its arrowhead
        line = " ".join(kind + " ".join(f"{a:.1f},{b:.1f}" for a, b in points) for kind, points in commands)
        head = f"M{x:.1f},{y:.1f} l{-_TIP[0]},{-_TIP[1]} v{2 * _TIP[1]} Z"
        parts.append(f'<g style="--c:{color_of(way[-2].text)}"><path class="edge" d="{line}"/>'
                     f'<path class="tip" d="{head}"/></g>')  # fmt: skip
    parts += [_box(box, *at(box.x, box.y)) for box in boxes if box.kind != "pass"]
    return "".join((*parts, "</svg>"))


def _box(box: Box, x: float, y: float) -> str:
    if box.kind == "label":
        width = _LETTER * len(box.text)
        style = f'class="op" style="--c:{color_of(box.text)}"'
        return (
            f'<rect class="behind" x="{x - width / 2:.1f}" y="{y - 7:.1f}" width="{width:.1f}" height="14"/>'
            f'<text {style} x="{x:.1f}" y="{y:.1f}" dy=".35em">{escape(box.text)}</text>'
        )
    width, height = _INCH * box.width, _INCH * box.height
    return (
        f'<rect class="{box.kind}" x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="8"/><text class="name" x="{x:.1f}" y="{y:.1f}" dy=".35em">'
        f"{with_index(box.text)}</text>"
    )


def with_index(name: str) -> str:
    """Return the SVG text of a name such as ``$c_{k-1}$``, its index set lower."""
    return _INDEX.sub(r'\1<tspan class="index" dy=".3em">\2</tspan>', escape(name))


def inline_curves(title: str, lines: Sequence[Line]) -> str:
    """Return lines over epochs in one panel, with their names above it; there must be a point."""
    left, right, top, bottom = _AXES
    width, height = _PANEL[0] - left - right, _PANEL[1] - top - bottom
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_ticks = ticks(min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + width * across, top + height * (1 - up)

    parts = [
        f'<svg class="curves" role="img" aria-label="{escape(title)}" viewBox="0 0 {_PANEL[0]} {_PANEL[1]}">',
        _text("title", left, 14, title),
        _text("tick end", left + width, _PANEL[1] - 4, "epoch"),
    ]
    for value in y_ticks:
        _, y = at(x_low, value)
        parts.append(f'<path class="grid" d="M{left},{y:.1f}h{width}"/>')
        parts.append(_text("tick end", left - 6, y + 3.5, f"{value:g}"))
    for value in (tick for tick in ticks(x_low, x_high) if tick == int(tick) and x_low <= tick <= x_high):
        parts.append(_text("tick middle", at(value, y_low)[0], top + height + 15, f"{value:g}"))
    for line in lines:
        points = [at(*point) for point in line.points]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line {line.style}" points="{way}"/>')
        if len(points) <= _POINTS:
            parts += [
                f'<circle class="point {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>'
                f"{escape(line.name)}, epoch {epoch:g}: {value:.5g}</title></circle>"
                for (x, y), (epoch, value) in zip(points, line.points, strict=True)
            ]
    return "".join((*parts, "</svg>"))


def _text(style: str, x: float, y: float, text: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Return two to seven round numbers at even distances that enclose ``low`` and ``high``."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 3))
    step = next(unit * k for k in (1, 2, 5, 10) if span / (unit * k) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    # Through decimal digits: 3 * 0.1 is not 0.3.
    return [float(f"{k * step:.12g}") for k in range(first, max(last, first + 1) + 1)]
