"""Bilevel optimisation of architecture parameters (paper section 2.3), one engine for every network."""

from dartsfast.bilevel.engine import VirtualStep, alpha_gradient
from dartsfast.bilevel.flat import flatten_
from dartsfast.bilevel.guard import preserved
from dartsfast.bilevel.hvp import hvp
from dartsfast.presets import PRESETS, Preset

__all__ = ["PRESETS", "Preset", "VirtualStep", "alpha_gradient", "flatten_", "hvp", "preserved"]
