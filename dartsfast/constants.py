"""Small tensors that are made once, so that no iteration copies them to a device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._guards import active_fake_mode
from torch.utils._python_dispatch import _disable_current_modes


def stands_for_others() -> bool:
    """Return whether tensors stand for others, in a ``FakeTensorMode``."""
    # The length first: most of the time there is no mode at all.
    return torch._C._len_torch_dispatch_stack() > 0 and active_fake_mode() is not None


@contextmanager
def plain() -> Iterator[None]:
    """Whatever the caller has chosen, make ordinary tensors within, on the CPU unless told otherwise.

    The default dtype, which is the whole process's, stays: give one.
    """
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
    ):
        yield


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a function that makes a tensor of its arguments' values alone, to return the same one again.

    What is kept is an ordinary tensor, also where it was first asked for within ``torch.inference_mode()``:
    there is no saving the other kind for a backward. While ``torch.compile`` traces, in a
    ``FakeTensorMode`` and within ``torch.func``'s transforms tensors stand for others, and none is kept.
    """

    @functools.cache
    def kept(*args: Any) -> Tensor:
        with plain():
            return make(*args)

    @functools.wraps(make)
    def found(*args: Any) -> Tensor:
        apart = (
            torch.compiler.is_compiling()
            or stands_for_others()
            or torch._C._are_functorch_transforms_active()
        )
        return make(*args) if apart else kept(*args)

    found.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return found
