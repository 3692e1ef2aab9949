"""Training curves."""

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from dartsfast.drawing.figure import new_figure, save_figure
from dartsfast.errors import InputError

SPLITS = {"train": "#1f6fb4", "valid": "#c9701a", "test": "#2e8b57"}
MEASURES = {"acc": "accuracy, %", "acc5": "right among five guesses, %", "ppl": "perplexity"}
# In inches: a panel with its ticks and labels, the axes in it, and where they begin.
_PANEL, _AXES, _CORNER = (4.6, 3.5), (3.8, 2.75), (0.68, 0.58)


def draw_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> list[Path]:
    """Draw training curves, one panel a measure: ``train_loss`` and ``valid_loss`` share one, and so on.

    ``history`` holds one dict an epoch; its ``epoch`` (or else its place, from 1) is the x axis, and every
    ``train_*``, ``valid_*`` and ``test_*`` number is drawn where it is present; ``*_acc`` is in percent.
    Returns the paths; ``InputError`` where there is nothing to draw.
    """
    curves = curves_of(history)
    if not curves:
        raise InputError(
            f"the history of {len(history)} epochs has nothing to draw; give each epoch numbers such as "
            "train_loss, valid_loss, train_acc or valid_ppl"
        )
    width, height = _PANEL[0] * len(curves), _PANEL[1]
    figure = new_figure(figsize=(width, height))
    for place, (measure, lines) in enumerate(curves.items()):
        # By hand: matplotlib's own layout draws everything twice.
        left = place * _PANEL[0] + _CORNER[0]
        ax = figure.add_axes((left / width, _CORNER[1] / height, _AXES[0] / width, _AXES[1] / height))
        for split, points in lines.items():
            ax.plot(*zip(*points, strict=True), label=split, color=SPLITS[split], marker="o", markersize=3.5)
        ax.set(xlabel="epoch", ylabel=MEASURES.get(measure, measure))
        # Few ticks: they take most of the time.
        ax.locator_params(axis="x", integer=True, min_n_ticks=1, nbins=6)
        ax.locator_params(axis="y", nbins=5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    return save_figure(figure, path)


def curves_of(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return points (epoch, value) by measure (``loss``) and split (``train``, ``valid``, ``test``)."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for place, row in enumerate(history, start=1):
        epoch = row.get("epoch", place)
        if not isinstance(epoch, Real):
            raise InputError(f"history entry {place} has epoch {epoch!r}; make it a number")
        for key, value in row.items():
            split, _, measure = key.partition("_")
            if split in SPLITS and measure and isinstance(value, Real):
                curves.setdefault(measure, {}).setdefault(split, []).append((float(epoch), float(value)))
    return curves
