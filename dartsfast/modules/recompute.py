"""``memory`` on the reference path: trade a second forward for the stored activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def running_statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Let a second forward move copies of the running statistics, which must not move a second time."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({k: None if b is None else b.clone() for k, b in norm._buffers.items()})
    try:
        yield
    finally:
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
