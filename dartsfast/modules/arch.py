"""What both search networks share: alphas beside the weights, and reading a cell off them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dartsfast.errors import InputError


class ArchModule(nn.Module):
    """A module with architecture parameters (alphas) that the weight optimiser must not see.

    Alphas are trainable leaves, plain attributes and members of :meth:`arch_parameters`. They are
    not in ``parameters()``; they follow ``.to()`` and ``.double()`` without losing their identity (an
    optimiser that holds them stays valid; to and from the meta device others take their place, as of
    parameters) and are saved in ``state_dict()``. A checkpoint without them, as the original code wrote,
    loads with ``strict=True`` and leaves them alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._arch_names: list[str] = []  # of arch_parameters()
        self._saved_names: list[str] = []  # and of those that a script has taken out since

    def add_arch_parameter(self, name: str, value: Tensor) -> None:
        """Make ``value`` (float, [edges, ops]) the trainable leaf ``self.<name>``."""
        setattr(self, name, value.detach().requires_grad_())
        self._name_arch_parameters([*self._arch_names, name])

    def arch_parameters(self) -> list[Tensor]:
        """Return the alphas, in the order in which they were added; what the list is given, the module is."""
        return _Alphas(self)

    @property
    def _arch_parameters(self) -> list[Tensor]:
        # The original's attribute, which scripts that go around arch_parameters() read and set.
        return self.arch_parameters()

    @_arch_parameters.setter
    def _arch_parameters(self, alphas: Iterable[Tensor]) -> None:
        given = {}
        for place, alpha in enumerate(alphas):
            # One that the script has made an attribute goes by that name; another takes the place's.
            name = next((name for name, value in self._attributes() if value is alpha), None)
            if name is None and place < len(self._arch_names):
                name = self._arch_names[place]
            if name is None or name in given or not isinstance(alpha, Tensor):
                raise InputError(
                    f"_arch_parameters[{place}] must be a tensor with a name of its own in the module: "
                    "set it as an attribute first (self.betas = ...)"
                )
            given[name] = alpha
        for name, alpha in given.items():
            if getattr(self, name) is not alpha:
                self._place_alpha(name, alpha)
        self._name_arch_parameters(list(given))

    def _place_alpha(self, name: str, alpha: Tensor) -> None:
        place_alpha(self, name, alpha)

    def _name_arch_parameters(self, names: list[str]) -> None:
        # What is taken out of the list is trained no more, but the network computes with it still.
        self._arch_names = names
        self._saved_names += [name for name in names if name not in self._saved_names]

    def _saved_alphas(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name, None) for name in self._saved_names}
        return {name: alpha for name, alpha in found.items() if isinstance(alpha, Tensor)}

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        return chain(vars(self).items(), self._parameters.items())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name, alpha in self._saved_alphas().items():
            with torch.no_grad():
                moved = fn(alpha.data)
                if torch._has_compatible_shallow_copy_type(alpha, moved):
                    alpha.data = moved
                    if alpha.grad is not None:
                        alpha.grad = fn(alpha.grad)
                    continue
            # To or from the meta device a tensor cannot go, as a parameter cannot: another takes its place.
            other = moved.requires_grad_(alpha.requires_grad)
            other.grad = None if alpha.grad is None else fn(alpha.grad)
            setattr(self, name, other)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, alpha in self._saved_alphas().items():
            destination[prefix + name] = alpha if keep_vars else alpha.detach()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        present = {n: alpha for n, alpha in self._saved_alphas().items() if prefix + n in state_dict}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name, alpha in present.items():
            key = prefix + name
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            value = state_dict[key]
            if value.shape != alpha.shape:
                error_msgs.append(
                    f"size mismatch for {key}: the checkpoint has {tuple(value.shape)}, "
                    f"this network {tuple(alpha.shape)}"
                )
                continue
            if local_metadata.get("assign_to_params_buffers", False):  # load_state_dict(assign=True)
                setattr(self, name, value.detach().requires_grad_(alpha.requires_grad))
                continue
            with torch.no_grad():
                alpha.copy_(value)


def place_alpha(module: nn.Module, name: str, alpha: Tensor) -> None:
    """Make ``alpha`` the attribute ``name`` of ``module``, and never one of its parameters."""
    module._parameters.pop(name, None)
    vars(module)[name] = alpha


# Pickles name the type that __reduce_ex__ returns, and torch.load(weights_only=True) knows no list by name.
torch.serialization.add_safe_globals([list])


class _Alphas(list[Tensor]):
    """A module's alphas as the original's list: what a script does to it, it does to the module's."""

    def __init__(self, module: ArchModule) -> None:
        super().__init__(getattr(module, name) for name in module._arch_names)
        self._module = module

    def __reduce_ex__(self, protocol: Any) -> tuple[type, tuple[list[Tensor]]]:
        # A copy, and what is saved, is a list of tensors that belongs to no module.
        return list, (list(self),)


def _followed(change: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that changes a list and then the module's alphas."""

    @functools.wraps(change)
    def method(self: _Alphas, *args: Any) -> Any:
        changed = list(self)
        result = change(changed, *args)
        self._module._arch_parameters = changed  # which may refuse them
        list.__setitem__(self, slice(None), changed)
        return self if result is changed else result

    return method


_ADD = ["__iadd__", "append", "extend", "insert"]
_CHANGE = ["__delitem__", "__setitem__", "clear", "pop", "remove", "reverse"]
for _name in _ADD + _CHANGE:
    setattr(_Alphas, _name, _followed(getattr(list, _name)))


def initial_alphas(edges: int, ops: int) -> Tensor:
    """Return the original's start, 1e-3 * N(0, 1), float32 [edges, ops] from the global generator."""
    return 1e-3 * torch.randn(edges, ops)


def check_finite(probabilities: np.ndarray) -> None:
    """Raise InputError for mixing weights by which no cell can be read off."""
    if not np.isfinite(probabilities).all():
        raise InputError(
            "no genotype can be read: the alphas hold NaN or infinity; resume from an earlier checkpoint"
        )


def best_edges(
    probabilities: np.ndarray,
    primitives: Sequence[str] | Sequence[Sequence[str]],
    inputs: Sequence[int],
    keep: int,
) -> list[tuple[str, int]]:
    """Read the discrete cell off the mixing weights (paper section 2.4).

    For each node, the ``keep`` incoming edges whose strongest operation other than ``none`` weighs
    most are kept, strongest edge first, each with that operation. Ties go to the lower edge and to
    the earlier operation, as in the original code.

    Args:
        probabilities: softmax(alpha), [sum(inputs), operations], edges node by node.
        primitives: operation names, the columns; or those of every edge.
        inputs: number of incoming edges, a node.
        keep: edges kept a node (2 in a CNN cell, 1 in a recurrent cell).

    Raises:
        InputError: a weight is not finite.
    """
    check_finite(probabilities)
    rows: Any = primitives
    if isinstance(primitives[0], str):
        rows = [primitives] * len(probabilities)
    # A script may have narrowed the alphas: the columns there are count.
    choices = [[k for k, name in enumerate(row[: probabilities.shape[1]]) if name != "none"] for row in rows]
    gene: list[tuple[str, int]] = []
    start = 0
    for count in inputs:
        weights = probabilities[start : start + count]
        # max() and sorted() are stable: the first of equals wins.
        mine = zip(choices[start : start + count], weights, strict=True)
        best = [max(found, key=row.__getitem__) for found, row in mine]
        order = sorted(range(count), key=lambda j: -weights[j][best[j]])
        gene += [(rows[start + j][best[j]], j) for j in order[:keep]]
        start += count
    return gene
