"""What computes in the place of the networks' modules, on the fused operators."""

from dartsfast.fused.budget import Fit, fit, fit_to_part
from dartsfast.fused.cnn import cell, stem

__all__ = ["Fit", "cell", "fit", "fit_to_part", "stem"]
