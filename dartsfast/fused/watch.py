"""Whether modules are still what a program was read off.

Asked of hundreds of modules every pass, so everything is looked at in bulk.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from torch import Tensor, nn

from dartsfast.modules.plain import hooks_of_all

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOK_DICTS = [itemgetter(name) for name in _HOOKS]
_OWNED = ("_modules", "_parameters", "_buffers")

# What a kind's ``forward`` goes by, besides its parameters, buffers and children.
_ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("training", "momentum", "eps", "track_running_stats", "affine"),
    nn.ReLU: ("training", "inplace"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}


class Watch:
    """Remembers what ``roots`` and all modules within them are: kinds, hooks, attributes and tensors."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self._roots = list(roots)
        self._modules = [module for root in roots for module in root.modules()]
        self._dicts = [module.__dict__ for module in self._modules]
        within = [own[name] for name in (*_HOOKS, *_OWNED) for own in self._dicts]
        self._empty = [one for one in within if not one]  # most of them
        self._full = [one for one in within if one]
        loose = [own for own in self._dicts if any(isinstance(value, Tensor) for value in own.values())]
        self._loose = loose  # weights that are plain attributes
        self._kinds: list[Any] = list(set(map(type, self._modules)))
        self._by_kind = [
            (
                itemgetter(*names),
                [own for m, own in zip(self._modules, self._dicts, strict=True) if type(m) is kind],
            )
            for kind, names in _ATTRIBUTES.items()
        ]
        # MixedOp is not known here; it is what has a stride and operations.
        self._strided = [own for own in self._dicts if "stride" in own]
        self._things = list(chain.from_iterable(map(dict.values, self._full)))  # so that no id is used again
        self._parameters = [p for root in roots for p in root.parameters()]
        self._seen = self._look()

    def unchanged(self, roots: Sequence[nn.Module]) -> bool:
        """Whether ``roots`` are those of before, and nothing about them has changed."""
        same = len(roots) == len(self._roots) and all(a is b for a, b in zip(roots, self._roots, strict=True))
        return same and self._look() == self._seen

    def _look(self) -> tuple[Any, ...]:
        return (
            hooks_of_all(),
            list(map(type, self._modules)),
            list(map(len, self._dicts)),  # a ``forward`` of its own, among others
            any(self._empty),
            [any(map(get, self._dicts)) for get in _HOOK_DICTS],  # which may be others by now
            [id(value) for own in self._loose for value in own.values()],
            list(map(id, chain.from_iterable(map(dict.values, self._full)))),
            [p.shape for p in self._parameters],  # a tensor may be set to another's memory
            [kind.forward for kind in self._kinds],
            [own["stride"] for own in self._strided],
            [list(map(get, dicts)) for get, dicts in self._by_kind],
        )
