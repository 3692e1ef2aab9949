"""``memory`` of ordinary modules: trade a second forward for the stored activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint


class _Copies(TorchFunctionMode):
    """Gives functions copies in the place of tensors, in this thread; the modules keep the tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._copies = {id(t): t.clone() for t in tensors}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        found = [self._copies.get(id(one), one) for one in args]
        return func(*found, **{key: self._copies.get(id(one), one) for key, one in (kwargs or {}).items()})


@contextmanager
def running_statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Let a second forward move copies of the running statistics, which must not move a second time."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    try:
        with _Copies(b for buffers in kept for b in buffers.values() if b is not None):
            yield
    finally:  # what a norm of one's own has set in their place
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def applied(module: nn.Module, memory: str, *args: Any) -> Tensor:
    """Return ``module(*args)``; unless ``memory`` is ``store`` only ``args`` are kept for the backward."""
    if memory != "store" and torch.is_grad_enabled():
        return recomputed(module, module, *args)
    return module(*args)


def recomputed(module: nn.Module, fn: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return ``fn(*args)``, keeping only ``args`` for the backward, which runs ``fn`` once more.

    It draws the same random numbers then; batch norms of ``module`` see the batch once.
    """
    if not module.training:
        return checkpoint(fn, *args, use_reentrant=False)
    return checkpoint(
        fn,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), running_statistics_untouched(module)),
    )
