"""Models of others on fused kernels: DARTS's descendants, whose candidate operations are the same."""

from dartsfast.descendants.models import accelerate, restore
from dartsfast.descendants.report import Report

__all__ = ["Report", "accelerate", "restore"]
