"""Pictures: cells as layered graphs, architecture weights as heat maps, training curves.

Every function writes a PNG and an SVG, or the one file (also PDF) whose suffix it is given. Same input,
same bytes; a killed run leaves no half picture.
matplotlib is imported on first use, through its object API, so no global state of it changes.
"""

import hashlib
import importlib.util
import io
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from dartsfast.cnn.genotypes import Genotype as CNNGenotype
from dartsfast.dag_layout import Box, Edge, Node, lay_out
from dartsfast.errors import InputError
from dartsfast.genotypes import CNN, RNN, as_genotype, check_cell

# Sizes are in inches: one data unit of a cell's axes is one inch of paper.
_NODE_HEIGHT, _LABEL_HEIGHT, _MARGIN = 0.42, 0.2, 0.25
_DPI = 160
_FONT = {"family": ("DejaVu Sans", "sans-serif"), "usetex": False}
_LABEL_SIZE, _NODE_SIZE, _TITLE_SIZE = 9, 12, 13
_FILL = {"input": ("#d8efd3", "#5b9a55"), "node": ("#d9e8f8", "#4a7fb5"), "output": ("#fbf0c4", "#bf9b30")}
_FAMILIES = {
    "sep": "#1f6fb4",
    "dil": "#7b4fb0",
    "conv": "#0b8a8f",
    "max": "#c0392b",
    "avg": "#c9701a",
    "skip": "#2e8b57",
    "identity": "#2e8b57",
    "tanh": "#1f6fb4",
    "relu": "#c0392b",
    "sigmoid": "#7b4fb0",
}
_PLAIN, _INK = "#8a8f98", "#20242a"
_RENDERING = threading.Lock()  # matplotlib's parser of formulas keeps state that threads share
_SPLITS = {"train": "#1f6fb4", "valid": "#c9701a", "test": "#2e8b57"}
_MEASURES = {"acc": "accuracy", "ppl": "perplexity"}


class _Cell(NamedTuple):
    title: str
    nodes: list[Node]
    edges: list[Edge]


def draw_genotype(genotype: Any, path: str | os.PathLike) -> list[Path]:
    """Draw a CNN genotype (both cells) or an RNN genotype to the files of :func:`save_figure`.

    A CNN genotype has ``normal``, ``normal_concat``, ``reduce`` and ``reduce_concat``; an RNN genotype has
    ``recurrent`` and ``concat`` (DARTS, section 2.1 and appendix A); each in any form that
    :func:`dartsfast.genotypes.as_genotype` takes, of any operations. Returns the paths. ``InputError``
    for another object or an entry that names no earlier node.
    """
    genotype = as_genotype(genotype)
    if isinstance(genotype, CNNGenotype):
        cells = [
            _cell_graph(genotype.normal, genotype.normal_concat, "Normal cell"),
            _cell_graph(genotype.reduce, genotype.reduce_concat, "Reduction cell"),
        ]
    else:
        cells = [_recurrent_graph(genotype.recurrent, genotype.concat, "Recurrent cell")]
    return _draw_cells(cells, path)


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


def draw_alphas(
    alphas: Mapping[str, tuple[Any, Sequence[str], Sequence[str]]],
    path: str | os.PathLike,
    *,
    title: str = "",
) -> list[Path]:
    """Draw softmax(alpha), the weight of every op on every edge, as one heat map a name.

    ``alphas`` maps a panel's name to ``(alpha, ops, edges)``: raw weights ``[len(edges), len(ops)]`` (tensor
    or array), op names, edge labels such as ``"0→2"``. Returns the paths; ``InputError`` for
    shapes that do not fit or weights whose softmax is not a number.
    """
    if not alphas:
        raise InputError("draw_alphas got no alphas; pass at least one name -> (alpha, ops, edges)")
    panels = {name: (_softmax(name, *entry), entry[1], entry[2]) for name, entry in alphas.items()}
    # Equal weights get half the scale or more, so that the first epochs are not all dark.
    peak = max(max(float(weights.max()), 2 / len(ops)) for weights, ops, _ in panels.values())
    widths = [0.5 * len(ops) + 1.0 for _, ops, _ in panels.values()]
    height = 0.28 * max(len(edges) for _, _, edges in panels.values()) + 1.8
    figure = new_figure(figsize=(sum(widths) + 0.9, height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"width_ratios": widths})[0]
    for ax, (name, (weights, ops, edges)) in zip(axes, panels.items(), strict=True):
        mesh = ax.pcolormesh(weights, vmin=0, vmax=peak, cmap="Blues", edgecolors="white", linewidth=1)
        ax.set_xticks(np.arange(len(ops)) + 0.5, ops, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(np.arange(len(edges)) + 0.5, edges)
        ax.set_title(name, parse_math=False)
        ax.invert_yaxis()
        ax.tick_params(length=0, labelsize=_LABEL_SIZE)
        ax.spines[:].set_visible(False)
        for (row, column), weight in np.ndenumerate(weights):
            color = "white" if weight > 0.6 * peak else _INK
            ax.text(
                column + 0.5, row + 0.5, f"{weight:.2f}", ha="center", va="center", fontsize=7, color=color
            )
    bar = figure.colorbar(mesh, ax=list(axes), label="softmax(α)", pad=0.02, fraction=0.05, aspect=40)
    bar.solids.set_edgecolor("face")  # or SVG viewers show hairlines between its shades
    if title:
        figure.suptitle(title, parse_math=False)
    return save_figure(figure, path)


def draw_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> list[Path]:
    """Draw training curves, one panel a measure: ``train_loss`` and ``valid_loss`` share one, and so on.

    ``history`` holds one dict an epoch; its ``epoch`` (or else its place, from 1) is the x axis, and every
    ``train_*``, ``valid_*`` and ``test_*`` number is drawn where it is present. Returns the PNG and SVG
    paths; ``InputError`` where there is nothing to draw.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for place, row in enumerate(history, start=1):
        for key, value in row.items():
            split, _, measure = key.partition("_")
            if split in _SPLITS and measure and isinstance(value, Real):
                epoch = row.get("epoch", place)
                if not isinstance(epoch, Real):
                    raise InputError(f"history entry {place} has epoch {epoch!r}; make it a number")
                curves.setdefault(measure, {}).setdefault(split, []).append((float(epoch), float(value)))
    if not curves:
        raise InputError(
            f"the history of {len(history)} epochs has nothing to draw; give each epoch numbers such as "
            "train_loss, valid_loss, train_acc or valid_ppl"
        )
    figure = new_figure(figsize=(5.0 * len(curves), 3.6), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for ax, (measure, lines) in zip(axes, curves.items(), strict=True):
        for split, points in lines.items():
            ax.plot(*zip(*points, strict=True), label=split, color=_SPLITS[split], marker="o", markersize=3)
        ax.set(xlabel="epoch", ylabel=_MEASURES.get(measure, measure))
        ax.locator_params(axis="x", integer=True, min_n_ticks=1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    return save_figure(figure, path)


def _softmax(name: str, alpha: Any, ops: Sequence[str], edges: Sequence[str]) -> np.ndarray:
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


def _cell_graph(entries: Any, concat: Any, title: str) -> _Cell:
    checked, concat = check_cell(entries, concat, CNN, title.lower() or "cell")
    steps = len(checked) // 2
    edges = [_edge(op, source, 2 + k // 2) for k, (op, source) in enumerate(checked)]
    edges += [_edge("", node, 2 + steps) for node in sorted(set(concat))]
    return _Cell(title, _nodes(("$c_{k-2}$", "$c_{k-1}$"), steps, "$c_k$"), edges)


def _recurrent_graph(entries: Any, concat: Any, title: str) -> _Cell:
    checked, concat = check_cell(entries, concat, RNN, title.lower() or "cell")
    steps = len(checked)
    edges = [_edge("", 0, 2), _edge("", 1, 2)]
    edges += [_edge(op, source + 2, k + 3) for k, (op, source) in enumerate(checked)]
    edges += [_edge("", node + 2, steps + 3) for node in sorted(set(concat))]
    return _Cell(title, _nodes(("$x_t$", "$h_{t-1}$"), steps + 1, "$h_t$"), edges)


def _nodes(inputs: tuple[str, str], steps: int, output: str) -> list[Node]:
    return [
        *(Node(name, "input", 0.7, _NODE_HEIGHT) for name in inputs),
        *(Node(str(step), "node", 0.48, _NODE_HEIGHT) for step in range(steps)),
        Node(output, "output", 0.7, _NODE_HEIGHT),
    ]


def _edge(op: str, source: int, target: int) -> Edge:
    # 0.62 em is the mean width of a letter of DejaVu Sans.
    return Edge(source, target, op, 0.62 * _LABEL_SIZE / 72 * len(op) + 0.1, _LABEL_HEIGHT)


def _draw_cells(cells: list[_Cell], path: str | os.PathLike) -> list[Path]:
    """Draw the cells one below the other on a figure whose data unit is an inch."""
    figure = new_figure(facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    right, bottom = 0.0, _MARGIN
    for cell in cells:
        boxes, ways = lay_out(cell.nodes, cell.edges)
        if cell.title:
            style = {"fontsize": _TITLE_SIZE, "weight": "bold", "color": _INK, **_FONT}
            ax.text(_MARGIN, bottom, cell.title, va="top", **style)
            bottom += 0.4
        shift = bottom - min(box.y - box.height / 2 for box in boxes)
        for box in boxes:
            box.x, box.y = box.x + _MARGIN, box.y + shift
        for way in ways:
            _draw_edge(ax, way)
        for box in boxes:
            _draw_box(ax, box)
        right = max(right, *(box.x + box.width / 2 + _MARGIN for box in boxes))
        bottom = max(box.y + box.height / 2 + _MARGIN for box in boxes)
    figure.set_size_inches(right, bottom)
    ax.set(xlim=(0, right), ylim=(bottom, 0))
    return save_figure(figure, path)


def _draw_edge(ax: Any, way: list[Box]) -> None:
    """Draw an edge as a smooth curve, level where it crosses a column, in the colour of its op."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    points = [(way[0].x + way[0].width / 2, way[0].y)]
    codes = [Curve.MOVETO]
    # A column without labels has no width before its passing edges and lets them through as they come.
    for box in [box for box in way[1:] if box.width]:
        (x, y), enter, leave = points[-1], box.x - box.width / 2, box.x + box.width / 2
        middle = (x + enter) / 2
        points += [(middle, y), (middle, box.y), (enter, box.y)]
        codes += [Curve.CURVE4] * 3
        if box is not way[-1]:
            points.append((leave, box.y))
            codes.append(Curve.LINETO)
    ax.add_patch(
        FancyArrowPatch(
            path=Curve(points, codes),
            arrowstyle="-|>",
            mutation_scale=9,
            color=_color(way[-2].text),
            linewidth=1.2,
            zorder=1,
        )
    )


def _draw_box(ax: Any, box: Box) -> None:
    """Draw a node as a filled box, a label as text on white, a passing edge not at all."""
    from matplotlib.patches import FancyBboxPatch

    if box.kind in _FILL:
        fill, rim = _FILL[box.kind]
        corner = (box.x - box.width / 2, box.y - box.height / 2)
        style = "round,pad=0,rounding_size=0.1"
        ax.add_patch(
            FancyBboxPatch(corner, box.width, box.height, boxstyle=style, fc=fill, ec=rim, lw=1.4, zorder=3)
        )
        centred = {"ha": "center", "va": "center", "color": _INK, "zorder": 4}
        ax.text(box.x, box.y, box.text, fontsize=_NODE_SIZE, **centred, **_FONT)
    elif box.kind == "label":
        ax.text(
            box.x,
            box.y,
            box.text,
            fontsize=_LABEL_SIZE,
            color=_color(box.text),
            ha="center",
            va="center_baseline",
            parse_math=False,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"},
            zorder=2,
            **_FONT,
        )


def _color(op: str) -> str:
    return next((color for family, color in _FAMILIES.items() if op.startswith(family)), _PLAIN)


def new_figure(**options: Any) -> Any:
    """Return an empty matplotlib figure of this package's resolution; ``InputError`` without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("drawing needs matplotlib, not found here; run pip install 'dartsfast[search]'")
    from matplotlib.figure import Figure

    return Figure(dpi=_DPI, **options)


def save_figure(figure: Any, path: str | os.PathLike) -> list[Path]:
    """Write the figure to ``path`` that ends in .png, .svg or .pdf, or else to ``path`` + .png and + .svg.

    Each file is written whole or not at all. Returns the paths; ``InputError`` for the suffix of another
    format of pictures.
    """
    base = Path(path)
    suffix = base.suffix.lower()
    if not base.name:
        raise InputError(f"pictures need a file name, got the path {str(path)!r}; pass one such as runs/cell")
    if suffix in _OTHER_FORMATS:
        raise InputError(f"pictures are {', '.join(_FORMATS)}, got {str(path)!r}; change the suffix")
    added = ("",) if suffix in _FORMATS else (".png", ".svg")
    targets = [base.with_name(base.name + end) for end in added]
    with _RENDERING:
        contents = [_FORMATS[target.suffix.lower()](figure) for target in targets]
    base.parent.mkdir(parents=True, exist_ok=True)
    for target, content in zip(targets, contents, strict=True):
        part = base.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            part.write_bytes(content)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return targets


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": "dartsfast"})
    return out.getvalue()


def _pdf(figure: Any) -> bytes:
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    out = io.BytesIO()
    FigureCanvasPdf(figure).print_pdf(out, metadata={"Creator": "dartsfast", "CreationDate": None})
    return out.getvalue()


def _svg(figure: Any) -> bytes:
    """Render to SVG with text as text and ids that depend on content alone.

    matplotlib takes both choices from its global settings only, which other threads share; hence a renderer
    of our own.
    """
    from matplotlib.backends.backend_svg import RendererSVG

    class Renderer(RendererSVG):
        def _make_id(self, type, content):
            return type + hashlib.sha256(str(content).encode()).hexdigest()[:10]

        def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
            self._draw_text_as_text(gc, x, y, s, prop, angle, ismath, mtext)

    figure.dpi = 72  # SVG's unit
    width, height = figure.get_size_inches() * 72
    out = io.StringIO()
    renderer = Renderer(width, height, out, metadata={"Date": None, "Creator": "dartsfast"})
    figure.draw(renderer)
    renderer.finalize()
    return out.getvalue().encode()


_FORMATS: dict[str, Callable[[Any], bytes]] = {".png": _png, ".svg": _svg, ".pdf": _pdf}
_OTHER_FORMATS = frozenset((".bmp", ".eps", ".gif", ".jpeg", ".jpg", ".ps", ".tif", ".tiff", ".webp"))
