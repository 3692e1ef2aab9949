"""Operations of dartsfast in networks of others, where they run as ordinary modules, and nothing says so."""

from __future__ import annotations

import functools
import warnings
from weakref import WeakSet

import torch
from torch import Tensor, nn

from dartsfast.backends.table import candidates

MANY = 8  # operations; in networks of fewer nothing is fused
_seen: WeakSet[nn.Module] = WeakSet()


class Operation(nn.Module):
    """An operation that knows whether it is part of a network that decides what computes it."""

    _alone = True

    def note(self, x: Tensor) -> None:
        """Say once, as the eighth operation alone computes of images that kernels serve, what would use them.

        Nothing is said where no gradients are asked for, or where a compiler looks.
        """
        if not self._alone or torch.compiler.is_compiling():
            return
        if type(x) is not Tensor or not torch.is_grad_enabled():
            return
        _seen.add(self)
        if len(_seen) >= MANY and any(
            found.available and found.backend != "reference" for found in candidates(x.device, x.dtype)
        ):
            _warn()


@functools.cache  # once a process
def _warn() -> None:
    warnings.warn(
        "operations of dartsfast.cnn run as ordinary modules, not on kernels, in a network that is not "
        "dartsfast's: dartsfast.accelerate(model) has kernels compute them (and with backend='reference' "
        "leaves them as they are, without this warning)",
        stacklevel=2,
    )


def adopt(network: nn.Module) -> None:
    """Note that ``network`` decides what computes the operations that it has now."""
    for module in network.modules():
        if isinstance(module, Operation):
            module._alone = False
