"""Tensors that wait: scaling by a number or a tensor of one element, adding and joining channels collect.

Whatever else is done with one computes it, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.descendants.pending import Call, Cat, Pending, Sum, Weighted, like, version_of, versions
from dartsfast.descendants.shaped import Shaped, shaped


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
        if not pending.waits(recorded):
            return self.value() * weight
        if isinstance(weight, (int, float)):
            part = Weighted(pending, float(weight))
        elif scales(weight, pending.like):
            part = Weighted(pending, 1.0, (weight,), version_of(weight))
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
        if not pending.waits(recorded) or not isinstance(other, Tensor):
            return None
        their: Any = _waiting_or_tensor(other)
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
        # An identity is its source, which would change with it, as does what is only seen another way.
        alias = isinstance(self.pending, Shaped) or (
            isinstance(self.pending, Call) and self.pending.operator.kind == "skip"
        )
        found = None if alias else self._sum(other, True)
        if found is None:
            mine = self.pending.changeable()
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
        if func in _CAT and (joined := _joined(args, kwargs or {})) is not None:
            return joined
        if (looked := shaped(func, args, kwargs)) is not None:
            return Lazy.of(looked)
        if changes(func, kwargs) and type(args[0]) is Lazy:
            args[0].pending.changeable()
        args, kwargs = _value(tuple(args)), _value(kwargs or {})
        if func in _RANDOM:
            # Masks are drawn in the order of memory, in which stock modules have images [N, C, H, W].
            args = tuple(one.contiguous() if isinstance(one, Tensor) else one for one in args)
        return func(*args, **kwargs)


def changes(func: Callable[..., Any], kwargs: Any) -> bool:
    """Whether a function changes its first argument in place."""
    name = getattr(func, "__name__", "")
    own = name.endswith("_") and not name.endswith("__")
    return own or name.startswith("__i") or name == "__setitem__" or bool((kwargs or {}).get("inplace"))


def _joined(args: Sequence[Any], options: Any) -> Lazy | None:
    """Return values that wait side by side, as one that waits; None for anything else."""
    pieces, *rest = args
    if (
        (*rest, *options.values()) != (1,)
        or set(options) - {"dim", "axis"}
        or type(pieces) not in (list, tuple)
    ):
        return None
    values = [_waiting_or_tensor(piece) for piece in pieces]
    waiting = [value for value in values if isinstance(value, Pending)]
    likes = [value.like if isinstance(value, Pending) else value for value in values]
    if not waiting or not all(type(one) in _TENSORS and one.dim() == 4 for one in likes):
        return None
    recorded = torch.is_grad_enabled()
    kinds = {(one.shape[:1] + one.shape[2:], one.dtype, one.device) for one in likes}
    alike = len(kinds) == 1 and all(value.recorded == recorded for value in waiting)
    if not alike or len(set(map(id, waiting))) < len(waiting):
        return None
    N, _, H, W = likes[0].shape
    shape = N, sum(one.shape[1] for one in likes), H, W
    parts = [Weighted(value, version=versions(value, ())) for value in values]
    return Lazy.of(Cat(parts, like(shape, likes[0].dtype, likes[0].device, recorded), recorded))


def _waiting_or_tensor(one: Any) -> Any:
    """Return what a tensor waits for, or its value where it waits for nothing."""
    if type(one) is not Lazy:
        return one
    pending = one.pending
    return pending if pending.value is None and pending.here else pending.get()


_TENSORS = (Tensor, nn.Parameter)
_MUL = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_CAT = {torch.cat, torch.concat, torch.concatenate}
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
