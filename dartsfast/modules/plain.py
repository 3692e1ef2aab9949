"""Whether a module is just what it was built as: only then may kernels compute in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules import module as torch_module

Kind = TypeVar("Kind", bound=type[nn.Module])

# The ``forward`` that a class came with: scripts give classes others.
_FORWARD: dict[type[nn.Module], Callable[..., Any]] = {
    kind: kind.forward
    for kind in (
        nn.AvgPool2d,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.Conv2d,
        nn.Linear,
        nn.MaxPool2d,
        nn.ReLU,
        nn.Sequential,
    )
}


def served(kind: Kind) -> Kind:
    """Class decorator: kernels may compute in the place of ``kind`` while its ``forward`` is this one."""
    _FORWARD[kind] = kind.forward
    return kind


def difference(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Say how a module differs from a ``kind`` that nobody altered; None where it does not.

    What its submodules are is not looked at.
    """
    if type(module) is not kind:
        return f"{type(module).__qualname__} is not {kind.__qualname__}"
    own = _altered(module) or hooks_of_all()
    return f"{kind.__qualname__} has hooks or a forward that it was not built with" if own else None


def is_plain(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether a module is a ``kind`` and no more: no subclass, no hooks, no ``forward`` of its own."""
    return difference(module, kind) is None


def is_plain_tree(module: nn.Module) -> bool:
    """Whether a module and all within are of kinds that kernels serve, and no more than that."""
    return not hooks_of_all() and _is_plain_tree(module)


def _is_plain_tree(module: nn.Module) -> bool:
    if type(module) not in _FORWARD or _altered(module):
        return False
    for child in module.__dict__["_modules"].values():  # noqa: SIM110 - a generator would cost more
        if not _is_plain_tree(child):
            return False
    return True


def _altered(module: nn.Module) -> bool:
    # Asked of thousands of modules every forward, hence the short way to the attributes.
    kind, own = type(module), module.__dict__
    return bool(
        ("forward" in own and not getattr(own["forward"], "stands_in", False))  # for that of the class
        or not is_as_built(kind)  # a script's own class is not served
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def is_as_built(kind: type[nn.Module]) -> bool:
    """Whether a class has the ``forward`` that it came with, and kernels may compute in its place."""
    return kind.forward is _FORWARD.get(kind)


def hooks_of_all() -> bool:
    """Whether there are hooks that run for every module."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
