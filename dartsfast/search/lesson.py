"""What a search has learned, in words that its own figures bear out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

EVEN = 0.5  # percent: alphas nearer than this to each other are said to be even


def accuracy_lesson(accuracy: float, images: int, classes: int, noun: str) -> str:
    """Word an accuracy in percent on ``images`` images (the alphas' half of the data)."""
    if classes == 1:
        return f"there was nothing to tell apart: all {images} images are of one class"
    chance = 100 / classes
    # Guesses are right chance % of the time, give or take; three standard errors are no luck.
    luck = 3 * math.sqrt(chance * (100 - chance) / images)
    verb = "tells" if accuracy > chance + luck else "does not yet tell"
    return (
        f"the search network {verb} {classes} {noun} apart: {accuracy:.0f} % right on {images} images that "
        f"its weights were not trained on ({chance:.2g} % by chance)"
    )


def perplexity_lesson(perplexity: float, words: int) -> str:
    """Word the perplexity of a validation text."""
    if perplexity < words:
        return (
            f"the search network is as unsure of the next word of the validation text as between "
            f"{_rounded(perplexity)} words ({words} by chance)"
        )
    return (
        f"the search network does not yet know the validation text better than chance: perplexity "
        f"{_rounded(perplexity)} of {words} words"
    )


def _rounded(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"  # no exponent where words are counted


def preferences(tables: Mapping[str, Any]) -> str:
    """Say which operation the alphas of every table weigh most, over all edges, ``none`` aside.

    Args:
        tables: name to (alphas [edges, operations], operation names, ...).
    """
    found = []
    for name, (alphas, operations, *_) in tables.items():
        real = [k for k, operation in enumerate(operations) if operation != "none"] or [0]
        weights = 100 * alphas.detach().double().softmax(dim=-1)  # [edges, operations], percent
        start = 100 / int((weights[0] > 0).sum())  # 0 is the weight of an operation that the edge lacks
        weights = weights[:, real]
        there = weights > 0
        low, high = weights[there].min().item(), weights.max().item()
        if high - low < EVEN:
            found.append(
                f"{name} are still even (from {low:.2f} to {high:.2f} %, {start:.4g} % at the start)"
            )
            continue
        means = weights.sum(0) / there.sum(0)
        best = int(means.argmax())
        found.append(
            f"{name} prefer {operations[real[best]]} (on average {means[best].item():.1f} % an edge, "
            f"{start:.4g} % at the start; single weights from {low:.1f} to {high:.1f} %)"
        )
    return ", ".join(found)
