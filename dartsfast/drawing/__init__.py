"""Pictures: cells as layered graphs, architecture weights as heat maps, training curves.

Every function writes a PNG and an SVG, or the one file (also PDF) whose suffix it is given. Same input,
same bytes; a killed run leaves no half picture.
matplotlib is imported on first use, through its object API, so no global state of it changes.
"""

from dartsfast.drawing.alphas import draw_alphas
from dartsfast.drawing.cells import draw_cell, draw_genotype, draw_recurrent, find_genotype
from dartsfast.drawing.curves import draw_curves
from dartsfast.drawing.figure import new_figure, save_figure

__all__ = [
    "draw_alphas",
    "draw_cell",
    "draw_curves",
    "draw_genotype",
    "draw_recurrent",
    "find_genotype",
    "new_figure",
    "save_figure",
]
