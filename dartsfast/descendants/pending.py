"""Values that are not computed yet: calls of operations, weighted sums, values and tensors side by side."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dartsfast.constants import constant
from dartsfast.modules.recompute import running_statistics_untouched

Factors = tuple[Tensor, ...]


class _Here(threading.local):
    """The lock under which what this thread has asked for is computed, by whichever thread needs it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


_here = _Here()


class Operator(Protocol):
    """What a :class:`Call` is of."""

    module: nn.Module
    kind: str

    def compute(self, calls: Sequence[Weighted], rest: Sequence[Weighted]) -> Tensor:
        """Return the sum of calls, the first of this operator, and of tensors."""

    def alone(self, call: Call) -> Tensor:
        """Return what the user's own forward gives."""

    def together(self, cat: Cat) -> Tensor | None:
        """Return values side by side as one program; None where they are none."""

    def unpaid(self, values: int) -> None:
        """Note that a sum of it was too small to pay."""

    def discarded(self, call: Call) -> None:
        """Do what the user's forward would have done beside a result that nobody asked for."""


def changed(what: str) -> RuntimeError:
    """Return an error that says what was changed in place."""
    return RuntimeError(
        f"{what} was changed in place before the result was used: "
        "change a copy, use the result first, or take dartsfast.restore(model)"
    )


def versions(value: Any, factors: Factors) -> int:
    """Return how often the tensors of a part have been changed in place."""
    count = version_of(value) if isinstance(value, Tensor) else 0
    return count + sum(map(version_of, factors))


class Weighted(NamedTuple):
    """A part of a sum: a value times a number and tensors of one element."""

    value: Any  # Pending or Tensor
    scale: float = 1.0
    factors: Factors = ()
    version: int = 0  # of its tensors, all together

    def check(self) -> None:
        """Raise where one of its tensors is not what it was."""
        if self.version != versions(self.value, self.factors):
            raise changed("a tensor in a sum with the result of an accelerated operation")


class Pending:
    """A value that is not computed yet.

    The thread that asked for it makes others of it; in any other thread it is computed first.

    Attributes:
        lock: of the thread that asked for it, held while it is computed.
        like: shape, dtype and device of it.
        recorded: whether autograd was on where it was asked for.
        value: once it is computed.
        uses: how many other values are made of it.
        taken: whether it was computed within another, and not kept.
        made: how often it had been changed in place when it was computed.
        read: whether an operation was called on it, or on some of its channels.
        number: values are numbered as they are made.
        depth: how many operations lie behind it, one of the result of another.
    """

    __slots__ = (
        "__weakref__", "depth", "like", "lock", "made", "number", "read", "recorded", "taken", "uses",
        "value",
    )  # fmt: skip
    _count = itertools.count()

    def __init__(self, like: Tensor, recorded: bool, depth: int) -> None:
        self.like, self.recorded, self.depth = like, recorded, depth
        self.lock = _here.lock
        self.number = next(Pending._count)
        self.read = False
        self.value: Tensor | None = None
        self.uses = 0
        self.taken = False

    @property
    def here(self) -> bool:
        """Whether this thread asked for it."""
        return self.lock is _here.lock

    def waits(self, recorded: bool) -> bool:
        """Whether it may be computed together with what is made of it here and now."""
        return self.value is None and self.recorded == recorded and self.here

    def get(self) -> Tensor:
        """Compute it, unless it was."""
        if self.value is None:
            with self.lock:
                if self.value is None:
                    self._fill()
        assert self.value is not None
        return self.value

    def _fill(self) -> None:
        own, _here.lock = _here.lock, self.lock  # what operations within operations ask for goes with it
        try:
            with torch.set_grad_enabled(self.recorded):
                value = self._compute()
        finally:
            _here.lock = own
        self.made = version_of(value)
        self.value = value
        self._release()

    def changeable(self) -> Tensor:
        """Return the value, which may then be changed in place."""
        return self.get()

    def apart(self, recorded: bool) -> bool:
        """Whether it is computed for itself where a sum of it is."""
        known = self.value is not None or self.taken
        return known or self.uses > 1 or self.read or self.recorded != recorded

    @property
    def first(self) -> Call | None:
        """A call that it is made of."""
        return None

    def _compute(self) -> Tensor:
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of what it was made of."""


class Call(Pending):
    """A call of an operation on a tensor, or on a value that is not computed yet."""

    __slots__ = ("operator", "source", "version")

    def __init__(self, operator: Any, source: Any, like: Tensor, recorded: bool) -> None:
        super().__init__(like, recorded, source.depth + 1 if isinstance(source, Pending) else 0)
        self.operator, self.source = operator, source
        self.version = 0 if isinstance(source, Pending) else version_of(source)

    @property
    def first(self) -> Call | None:
        """Itself."""
        return self

    def settle(self) -> None:
        """Compute the source."""
        if isinstance(self.source, Pending):
            source = self.source
            self.source = source.get()
            self.version = source.made

    def check(self) -> None:
        """Raise where the source is not what it was at the call."""
        self.settle()
        if version_of(self.source) != self.version:
            raise changed("the input of an accelerated operation")

    def _compute(self) -> Tensor:
        self.settle()
        if self.taken:
            with running_statistics_untouched(self.operator.module):
                return self.operator.alone(self)
        return self.operator.compute([Weighted(self)], [])

    def _release(self) -> None:
        self.source = self.like

    def __del__(self) -> None:
        if self.value is None and not self.taken:
            self.operator.discarded(self)


class Sum(Pending):
    """A sum of weighted values."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Weighted], like: Tensor, recorded: bool) -> None:
        super().__init__(like, recorded, max(value.depth for value in _waiting(parts)))
        self.parts = parts

    @property
    def first(self) -> Call | None:
        """A call within."""
        return _first(self.parts)

    def _compute(self) -> Tensor:
        calls, waiting, inner = self.flat()
        rest = [settled(part) for part in waiting]
        if not calls:
            return functools.reduce(torch.add, map(weighted, rest))
        for value in (*inner, *(part.value for part in calls)):
            value.taken = True
        return calls[0].value.operator.compute(calls, rest)

    def flat(self) -> tuple[list[Weighted], list[Weighted], list[Sum]]:
        """Return what it is made of: calls that nothing else needs, all else, and the sums within."""
        calls: list[Weighted] = []
        rest: list[Weighted] = []
        sums: list[Sum] = []
        for part in self.parts:
            part.check()
        stack = list(reversed(self.parts))
        while stack:
            value, scale, factors, _ = part = stack.pop()
            if not isinstance(value, Pending) or value.apart(self.recorded):
                rest.append(part)
            elif isinstance(value, Call):
                calls.append(part)
            elif not isinstance(value, Sum):
                rest.append(part)
            else:
                sums.append(value)
                for part in value.parts:
                    part.check()
                inner = [Weighted(v, s * scale, (*f, *factors)) for v, s, f, _ in reversed(value.parts)]
                stack.extend(inner)
        return calls, rest, sums

    def _release(self) -> None:
        self.parts = ()


class Cat(Pending):
    """Values and tensors side by side, by channels."""

    __slots__ = ("owned", "pieces")

    def __init__(self, pieces: Sequence[Weighted], like: Tensor, recorded: bool) -> None:
        super().__init__(like, recorded, max(value.depth for value in _waiting(pieces)))
        for value in _waiting(pieces):
            value.uses += 1
        self.pieces = pieces
        self.owned = False

    @property
    def first(self) -> Call | None:
        """A call within."""
        return _first(self.pieces)

    def changeable(self) -> Tensor:
        """Return the value, a copy of what was computed, which is kept for the backward."""
        if not self.owned:
            self.value, self.owned = self.get().clone(), True
        return self.get()

    def _compute(self) -> Tensor:
        for piece in self.pieces:
            piece.check()
        first = self.first
        found = None if first is None else first.operator.together(self)
        return torch.cat([settled(piece).value for piece in self.pieces], 1) if found is None else found

    def _release(self) -> None:
        self.pieces = ()


def _waiting(parts: Sequence[Weighted]) -> Iterator[Pending]:
    return (part.value for part in parts if isinstance(part.value, Pending))


def _first(parts: Sequence[Weighted]) -> Call | None:
    return next((call for call in (value.first for value in _waiting(parts)) if call is not None), None)


def settled(part: Weighted) -> Weighted:
    """Return a part whose value is computed."""
    if not isinstance(part.value, Pending):
        return part
    value = part.value.get()
    if version_of(value) != part.value.made:
        raise changed("the result of an accelerated operation")
    return part._replace(value=value)


def weighted(part: Weighted) -> Tensor:
    """Return a tensor times its weights."""
    out: Tensor = part.value
    for factor in part.factors:
        out = out * factor
    return out if part.scale == 1.0 else out * part.scale


def version_of(x: Tensor) -> int:
    """Return how often a tensor has been changed in place."""
    return 0 if x.is_inference() else x._version


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        raise RuntimeError(
            "the result of an accelerated operation went through a torch.autograd.Function, which takes it "
            "before it is computed: use it first, such as by x.clone(), or take dartsfast.restore(model)"
        )


@constant
def like(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, recorded: bool) -> Tensor:
    """Return what stands for a value where torch does not ask for it: infinite, without a gradient."""
    with torch.set_grad_enabled(recorded):
        one = torch.full((), float("inf"), dtype=dtype, device=device, requires_grad=recorded)
        return (_Refuse.apply(one) if recorded else one).expand(shape)
