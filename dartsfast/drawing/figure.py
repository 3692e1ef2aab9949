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

DPI = 160
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
    colors: Sequence[str],
    size: float = 7,
) -> None:
    """Write many short numbers around ``places``, sooner than as many texts of matplotlib's would be."""
    from matplotlib.artist import Artist
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family="DejaVu Sans", size=size)  # which has digits: no other is looked for

    class Numbers(Artist):
        def draw(self, renderer: Any) -> None:
            corners = ax.transData.transform(places)
            gc = renderer.new_gc()
            extents = {}  # of as many digits: they are equally wide
            for (x, y), number, color in zip(corners, numbers, colors, strict=True):
                if len(number) not in extents:
                    extents[len(number)] = renderer.get_text_width_height_descent(number, font, False)
                width, height, descent = extents[len(number)]
                gc.set_foreground(color)
                below = y - height / 2 + descent
                if renderer.flipy():
                    below = renderer.height - below
                renderer.draw_text(gc, x - width / 2, below, number, font, 0)
            gc.restore()

    ax.add_artist(Numbers()).set_zorder(4)


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
    figure.dpi = DPI
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
