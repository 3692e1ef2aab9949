"""What computes in the place of the networks' modules, on the fused operators."""

from dartsfast.fused.budget import Fit, fit, fit_to_part
from dartsfast.fused.cnn import cell, stem
from dartsfast.ops import alpha_softmax

__all__ = ["Fit", "alpha_softmax", "cell", "fit", "fit_to_part", "stem"]
