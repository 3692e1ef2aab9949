"""Values that are others seen another way: some of the channels, or all of them, shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.descendants.pending import Call, Cat, Pending, changed, like, version_of


class Seen(NamedTuple):
    """What a value is of another.

    ``channels``: ``numbers`` being first and end; ``data``: the same without autograd. Of channels side by
    side, ``numbers`` being their groups, on the way to be shuffled: ``grouped`` [N, groups, C, H, W],
    ``swapped`` [N, C, groups, H, W], ``packed``, a copy of that, and ``shuffled`` [N, C * groups, H, W].
    """

    kind: str
    numbers: tuple[int, ...] = ()


class Shaped(Pending):
    """Another value seen another way."""

    __slots__ = ("seen", "source", "_look")

    def __init__(
        self, source: Pending, seen: Seen, shape: tuple[int, ...], look: Callable[[Tensor], Tensor]
    ) -> None:
        recorded = source.recorded and seen.kind != "data"
        own = source.like
        super().__init__(like(shape, own.dtype, own.device, recorded), recorded, source.depth)
        self.source, self.seen, self._look = source, seen, look
        source.read |= seen.kind == "channels"
        source.uses += seen.kind not in ("channels", "data")

    @property
    def origin(self) -> tuple[Any, tuple[int, int] | None]:
        """The value whose channels it is, and which; where that was computed, itself, computed."""
        if self.value is not None or self.source.value is not None:
            return self.get(), None
        if self.seen.kind != "channels":
            return self, None
        begin, end = self.seen.numbers
        return self.source, (begin, end)

    @property
    def first(self) -> Call | None:
        """A call that the other value is made of."""
        return self.source.first

    def changeable(self) -> Tensor:
        """Return the value, which may then be changed in place, and the other with it."""
        if self.value is None:
            self.source.changeable()
        return self.get()

    def _compute(self) -> Tensor:
        value = self.source.get()
        # A view sees changes; what was made of one, or is a copy in the user's code, must not.
        earlier = self.read or self.uses or self.seen.kind in ("packed", "shuffled")
        if earlier and version_of(value) != self.source.made:
            raise changed("the result of an accelerated operation")
        return self._look(value)


def shaped(func: Callable[..., Any], args: Sequence[Any], options: Any) -> Shaped | None:
    """Return what a function that looks at a value gives, as a value that waits; None for anything else."""
    lazy, *rest = args
    pending = getattr(lazy, "pending", None)
    if options or pending is None or not pending.waits(torch.is_grad_enabled()):
        return None
    found = _seen(func, pending, rest)
    return found and Shaped(pending, *found, lambda x: func(x, *rest))


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_VIEW = {Tensor.view, Tensor.reshape, torch.reshape}
_RESHAPE = {Tensor.reshape, torch.reshape}
_SHUFFLE = {F.channel_shuffle, torch.channel_shuffle}
_SWAP: dict[Any, Any] = {
    torch.transpose: ((1, 2), (2, 1)),
    Tensor.transpose: ((1, 2), (2, 1)),
    torch.permute: ((0, 2, 1, 3, 4),),
    Tensor.permute: ((0, 2, 1, 3, 4),),
}


def _seen(func: Any, pending: Pending, rest: list[Any]) -> tuple[Seen, tuple[int, ...]] | None:
    shape = tuple(pending.like.shape)
    if func is Tensor.__getitem__:
        return _channels(shape, rest[0])
    if func == _DATA:
        return Seen("data"), shape
    if isinstance(pending, Cat):
        return _grouped(func, shape, rest)
    if not isinstance(pending, Shaped):
        return None
    kind, groups = pending.seen
    if kind == "grouped" and tuple(_flat(rest)) in _SWAP.get(func, ()):
        N, G, C, H, W = shape
        return Seen("swapped", groups), (N, C, G, H, W)
    if kind in ("swapped", "packed") and func is Tensor.contiguous and not rest:
        return Seen("packed", groups), shape
    if (kind == "packed" and func in _VIEW) or (kind == "swapped" and func in _RESHAPE):
        N, C, G, H, W = shape
        return (
            (Seen("shuffled", groups), (N, C * G, H, W)) if _sizes(rest, shape) == (N, C * G, H, W) else None
        )
    return None


def _grouped(func: Any, shape: tuple[int, ...], rest: list[Any]) -> tuple[Seen, tuple[int, ...]] | None:
    N, C, H, W = shape
    if func in _SHUFFLE and len(rest) == 1 and type(rest[0]) is int and rest[0] > 0 and C % rest[0] == 0:
        return Seen("shuffled", (rest[0],)), shape
    if func not in _VIEW:
        return None
    sizes = _sizes(rest, shape)
    if len(sizes) == 5 and sizes == (N, sizes[1], C // max(sizes[1], 1), H, W):
        return Seen("grouped", (sizes[1],)), sizes
    return None


def _channels(shape: tuple[int, ...], index: Any) -> tuple[Seen, tuple[int, ...]] | None:
    """Return which channels ``x[:, begin:end]`` takes, also with ``:`` for rows and columns; else None."""
    every = slice(None)
    if len(shape) != 4 or type(index) is not tuple or not 2 <= len(index) <= 4:
        return None
    images, channels, *pixels = index
    if images != every or any(one != every for one in pixels) or type(channels) is not slice:
        return None
    if not all(type(one) in (int, type(None)) for one in (channels.start, channels.stop, channels.step)):
        return None
    begin, end, step = channels.indices(shape[1])
    if step != 1 or begin >= end:
        return None
    return Seen("channels", (begin, end)), (shape[0], end - begin, *shape[2:])


def _flat(given: Sequence[Any]) -> Sequence[Any]:
    """Return dimensions that were given one by one, or as one tuple."""
    return given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given


def _sizes(given: Sequence[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes that a view is asked for, those of ``shape`` together; () where they are not such."""
    sizes = list(_flat(given))
    if not all(type(size) is int for size in sizes) or sizes.count(-1) > 1:
        return ()
    if -1 in sizes:
        others = -prod(sizes)
        sizes[sizes.index(-1)] = prod(shape) // others if others > 0 else 0
    return tuple(sizes) if prod(sizes) == prod(shape) else ()
