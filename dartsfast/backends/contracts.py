"""What backends know of the operators that they serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CONTRACTS: dict[str, Callable[..., Any]] = {}
"""Shape inference of every operator: it checks the arguments and allocates what the operator returns.

``dartsfast.ops.contract.define`` enters them.
"""
