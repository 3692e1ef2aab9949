"""Edges that are no part of their cell's program, and whose operations kernels serve one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dartsfast.descendants import accelerate


def serve_edges(model: Any, edges: Sequence[nn.Module], memory: str = "store") -> None:
    """Have kernels compute the operations within ``edges`` of a network that is not on its reference path.

    Not on torch's device ``meta``, where nothing is computed. ``memory`` is that of :func:`accelerate`.
    """
    if model._backend != "reference" and not next(model.parameters()).is_meta:
        accelerate(nn.ModuleList(edges), backend=model._backend, memory=memory, verify=False)
