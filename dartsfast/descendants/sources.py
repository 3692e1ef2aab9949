"""Which sources of calls are one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from dartsfast.descendants.pending import Pending, Weighted, version_of
from dartsfast.descendants.shaped import Shaped

Channels = tuple[int, int] | None


def origin(source: Any) -> tuple[Any, Channels]:
    """Return the value that a source is, or of which it is the channels that are named."""
    return source.origin if isinstance(source, Shaped) else (source, None)


def identity(source: Any) -> Hashable:
    """Return what sources have in common that are one: the same tensor, value, or channels of it."""
    if isinstance(source, Pending):
        value, channels = origin(source)
        return id(value), channels
    view = _slice(source)
    return id(source) if view is None else view


def _slice(x: Tensor) -> Hashable:
    """Return what slices of a tensor have in common that nothing tells apart; None for any other tensor."""
    base, made = x._base, x.grad_fn
    if base is None or x._backward_hooks or x.retains_grad or (made is None and x.requires_grad):
        return None
    if made is not None and made.name() != "SliceBackward0":
        return None
    before = (
        () if made is None else made.next_functions
    )  # themselves: the number of one may be another's later
    return id(base), before, x.storage_offset(), x.shape, x.stride(), version_of(x)


def by_source(parts: Sequence[Weighted]) -> list[list[Weighted]]:
    """Return calls, those of one source together."""
    groups: dict[Any, list[Weighted]] = {}
    for part in parts:
        groups.setdefault(identity(part.value.source), []).append(part)
    return list(groups.values())
