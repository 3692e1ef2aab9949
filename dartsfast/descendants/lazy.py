"""Values that are not computed yet: calls of operations, and weighted sums of them, whoever wrote the sum.

Scaling by a number, or by a tensor of one element, and adding collect; anything else that is done with one
computes it, once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.modules.recompute import running_statistics_untouched

Factors = tuple[Tensor, ...]


class Operator(Protocol):
    """What a :class:`Call` is of."""

    module: nn.Module
    kind: str

    def compute(self, calls: Sequence[Weighted], rest: Sequence[Weighted]) -> Tensor:
        """Return the sum of calls, the first of this operator, and of tensors."""

    def alone(self, call: Call) -> Tensor:
        """Return what the user's own forward gives."""

    def discarded(self, call: Call) -> None:
        """Do what the user's forward would have done beside a result that nobody asked for."""


CHANGED = (
    "{} was changed in place before the result was used: "
    "change a copy, use the result first, or take dartsfast.restore(model)"
)


def versions(value: Any, factors: Factors) -> int:
    """Return how often the tensors of a part have been changed in place."""
    count = _version(value) if isinstance(value, Tensor) else 0
    return count + sum(map(_version, factors))


class Weighted(NamedTuple):
    """A part of a sum: a value times a number and tensors of one element."""

    value: Any  # Pending or Tensor
    scale: float = 1.0
    factors: Factors = ()
    version: int = 0  # of its tensors, all together

    def check(self) -> None:
        """Raise where one of its tensors is not what it was."""
        if self.version != versions(self.value, self.factors):
            raise RuntimeError(
                CHANGED.format("a tensor in a sum with the result of an accelerated operation")
            )


class Pending:
    """A value that is not computed yet.

    Attributes:
        like: shape, dtype and device of it.
        recorded: whether autograd was on where it was asked for.
        value: once it is computed.
        uses: how many other values are made of it.
        taken: whether it was computed within another, and not kept.
        made: how often it had been changed in place when it was computed.
    """

    __slots__ = ("__weakref__", "like", "made", "recorded", "taken", "uses", "value")

    def __init__(self, like: Tensor, recorded: bool) -> None:
        self.like, self.recorded = like, recorded
        self.value: Tensor | None = None
        self.uses = 0
        self.taken = False

    def get(self) -> Tensor:
        """Compute it, unless it was."""
        if self.value is None:
            with torch.set_grad_enabled(self.recorded):
                self.value = self._compute()
            self.made = _version(self.value)
            self._release()
        return self.value

    def _compute(self) -> Tensor:
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of what it was made of."""


class Call(Pending):
    """A call of an operation on a tensor."""

    __slots__ = ("operator", "source", "training", "version")

    def __init__(self, operator: Any, source: Tensor, like: Tensor, recorded: bool, training: bool) -> None:
        super().__init__(like, recorded)
        self.operator, self.source, self.training = operator, source, training
        self.version = _version(source)

    def check(self) -> None:
        """Raise where the source is not what it was at the call."""
        if _version(self.source) != self.version:
            raise RuntimeError(CHANGED.format("the input of an accelerated operation"))

    def _compute(self) -> Tensor:
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
        super().__init__(like, recorded)
        self.parts = parts

    def _compute(self) -> Tensor:
        calls: list[Weighted] = []
        rest: list[Weighted] = []
        again: list[Any] = []
        self._flatten(calls, rest, again)
        if not calls:
            return functools.reduce(torch.add, map(weighted, rest))
        for part in calls:
            part.value.taken = True
        return calls[0].value.operator.compute(calls, rest)

    def _flatten(self, calls: list[Weighted], rest: list[Weighted], again: list[Any]) -> None:
        """Sort what it is made of: calls that nothing else needs, and tensors."""
        for part in self.parts:
            part.check()
        stack = list(reversed(self.parts))
        while stack:
            value, scale, factors, _ = part = stack.pop()
            if not isinstance(value, Pending):
                rest.append(part)
            elif value.value is not None or value.uses > 1 or value.taken or value.recorded != self.recorded:
                rest.append(Weighted(value.get(), scale, factors))
                if _version(rest[-1].value) != value.made:
                    raise RuntimeError(CHANGED.format("the result of an accelerated operation"))
            elif isinstance(value, Call):
                calls.append(part)
            else:
                value.taken = True
                assert isinstance(value, Sum)
                for part in value.parts:
                    part.check()
                inner = [Weighted(v, s * scale, (*f, *factors)) for v, s, f, _ in reversed(value.parts)]
                stack.extend(inner)

    def _release(self) -> None:
        self.parts = ()


def weighted(part: Weighted) -> Tensor:
    """Return a tensor times its weights."""
    out: Tensor = part.value
    for factor in part.factors:
        out = out * factor
    return out if part.scale == 1.0 else out * part.scale


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


class Lazy(Tensor):
    """A tensor whose value is :class:`Pending`."""

    pending: Pending

    @staticmethod
    def of(pending: Pending) -> Lazy:
        """Return the tensor of a value."""
        found = pending.like.as_subclass(Lazy)
        found.pending = pending
        return found

    def value(self) -> Tensor:
        """Return the value, computed once."""
        return self.pending.get()

    def _times(self, weight: Any) -> Any:
        pending = self.pending
        recorded = torch.is_grad_enabled()
        if pending.value is not None or pending.recorded != recorded:
            return self.value() * weight
        if isinstance(weight, (int, float)):
            part = Weighted(pending, float(weight))
        elif scales(weight, pending.like):
            part = Weighted(pending, 1.0, (weight,), _version(weight))
        else:
            return self.value() * (weight.value() if isinstance(weight, Lazy) else weight)
        pending.uses += 1
        return Lazy.of(Sum((part,), pending.like, recorded))

    def _plus(self, other: Any, first: bool) -> Any:
        if type(other) is int and other == 0:  # where sum() begins
            return self
        found = self._sum(other, first)
        if found is not None:
            return Lazy.of(found)
        a, b = (self, other) if first else (other, self)
        return _value(a) + _value(b)

    def _sum(self, other: Any, first: bool) -> Sum | None:
        """Return the sum with another, or None where it is not of one kind with this."""
        pending, recorded = self.pending, torch.is_grad_enabled()
        if pending.value is not None or pending.recorded != recorded or not isinstance(other, Tensor):
            return None
        their: Any = other
        if type(other) is Lazy:
            their = other.pending if other.pending.value is None else other.pending.value
        like = their.like if isinstance(their, Pending) else their
        if not isinstance(their, Pending) and type(their) not in _TENSORS:
            return None
        own = pending.like
        if like.shape != own.shape or like.dtype != own.dtype or like.device != own.device:
            return None
        for one in (pending, their):
            if isinstance(one, Pending):
                one.uses += 1
        parts = (Weighted(pending), Weighted(their, version=versions(their, ())))
        return Sum(parts if first else parts[::-1], own, recorded)

    def __mul__(self, weight: Any) -> Any:
        return self._times(weight)

    def __rmul__(self, weight: Any) -> Any:
        return self._times(weight)

    def __add__(self, other: Any) -> Any:
        return self._plus(other, True)

    def __radd__(self, other: Any) -> Any:
        return self._plus(other, False)

    def __iadd__(self, other: Any) -> Any:  # noqa: PYI034 - where it was computed it is another tensor
        # An identity is its source, which would change with it.
        alias = isinstance(self.pending, Call) and self.pending.operator.kind == "skip"
        found = None if alias else self._sum(other, True)
        if found is None:
            mine = self.value()
            mine += _value(other)
            return mine
        self.pending = found
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if not kwargs and len(args) == 2:
            a, b = args
            if func in _MUL:
                return a._times(b) if type(a) is Lazy else b._times(a)
            if func in _ADD:
                return a._plus(b, True) if type(a) is Lazy else b._plus(a, False)
        args, kwargs = _value(tuple(args)), _value(kwargs or {})
        if func in _RANDOM:
            # Masks are drawn in the order of memory, in which stock modules have images [N, C, H, W].
            args = tuple(one.contiguous() if isinstance(one, Tensor) else one for one in args)
        return func(*args, **kwargs)


_TENSORS = (Tensor, nn.Parameter)
_MUL = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_RANDOM = {
    F.dropout,
    F.alpha_dropout,
    torch.dropout,
    torch.bernoulli,
    torch.rand_like,
    torch.randn_like,
    Tensor.bernoulli,
}
_METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.nelement,
    Tensor.ndimension,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse", "is_quantized")
    ),
}


def scales(weight: Any, like: Tensor) -> bool:
    """Whether a product with ``weight`` has the shape, dtype and device of the other factor."""
    if type(weight) not in _TENSORS or weight.numel() != 1 or weight.dim() > like.dim():
        return False
    if weight.dim():
        return weight.dtype == like.dtype and weight.device == like.device
    return not weight.is_complex() and (weight.device == like.device or weight.device.type == "cpu")


def _value(found: Any) -> Any:
    if isinstance(found, Lazy):
        return found.value()
    if isinstance(found, (list, tuple)):
        inside = [_value(one) for one in found]
        return type(found)(*inside) if hasattr(found, "_fields") else type(found)(inside)
    if isinstance(found, dict):
        return {key: _value(one) for key, one in found.items()}
    return found


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        raise RuntimeError(
            "the result of an accelerated operation went through a torch.autograd.Function, which takes it "
            "before it is computed: give it `x + 0.0`-like results of operations, or dartsfast.restore(model)"
        )


@functools.lru_cache(maxsize=256)
def like(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, recorded: bool) -> Tensor:
    """Return what stands for a value where torch does not ask for it: not a number, without a gradient."""
    with torch.inference_mode(False), torch.set_grad_enabled(recorded):
        one = torch.full((), float("nan"), dtype=dtype, device=device, requires_grad=recorded)
        return (_Refuse.apply(one) if recorded else one).expand(shape)
