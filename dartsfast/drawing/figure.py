"""Figures, and their way to the disk."""

import hashlib
import importlib.util
import io
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dartsfast.errors import InputError

DPI = 120
FONT = {"family": ("DejaVu Sans", "sans-serif"), "usetex": False}
INK = "#20242a"
_RENDERING = threading.Lock()  # matplotlib's parser of formulas keeps state that threads share


def new_figure(**options: Any) -> Any:
    """Return an empty matplotlib figure of this package's resolution; ``InputError`` without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("drawing needs matplotlib, not found here; run pip install 'dartsfast[search]'")
    from matplotlib.figure import Figure

    return Figure(dpi=DPI, **options)


def full_axes(figure: Any) -> Any:
    """Return axes without frame over the whole figure; :func:`fit` makes their data unit an inch."""
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    return ax


def fit(figure: Any, ax: Any, width: float, height: float) -> None:
    """Give a figure of :func:`full_axes` its size in inches, y growing downwards."""
    figure.set_size_inches(width, height)
    ax.set(xlim=(0, width), ylim=(height, 0))


def add_numbers(
    ax: Any,
    places: Sequence[tuple[float, float]],
    numbers: Sequence[str],
    colors: Sequence[Any],
    size: float = 7,
) -> None:
    """Write many short numbers or arrows around ``places`` of :func:`full_axes`, much sooner than as texts.

    All places of a character are one collection of its shape.
    """
    from matplotlib.collections import PathCollection
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath, text_to_path
    from matplotlib.transforms import Affine2D

    font = FontProperties(family="DejaVu Sans", size=size)  # which has them: no other is looked for
    characters = sorted(set("".join(numbers)))
    # Inches from one character to the next, and down from the middle of a digit to the line it stands on.
    steps = {c: text_to_path.get_text_width_height_descent(c, font, False)[0] / 72 for c in characters}
    drop = text_to_path.get_text_width_height_descent("1", font, False)[1] / 144
    found: dict[str, tuple[list, list]] = {c: ([], []) for c in characters}
    for (x, y), number, color in zip(places, numbers, colors, strict=True):
        x -= sum(steps[c] for c in number) / 2
        for c in number:
            found[c][0].append((x, y + drop))
            found[c][1].append(color)
            x += steps[c]
    inches = Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans
    for c, (offsets, inks) in found.items():
        shapes = PathCollection([TextPath((0, 0), c, prop=font)], offsets=offsets, facecolors=inks, zorder=4)
        shapes.set(linewidths=0, transform=inches, offset_transform=ax.transData)
        ax.add_artist(shapes)


def save_figure(figure: Any, path: str | os.PathLike) -> list[Path]:
    """Write the figure to ``path`` that ends in .png, .svg or .pdf, or else to ``path`` + .png and + .svg.

    Each file is written whole or not at all. Returns the paths; ``InputError`` for the suffix of another
    format of pictures.
    """
    base = Path(os.path.expanduser(path))
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
    figure.dpi = DPI
    FigureCanvasAgg(figure).print_png(
        out, metadata={"Software": "dartsfast"}, pil_kwargs={"compress_level": 1}
    )
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
