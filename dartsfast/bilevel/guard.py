"""Move tensors in place and put them back to the bit, whatever happens in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Restore ``tensors`` to the bit on the way out, also when the body raises or Ctrl-C strikes.

    Yields the saved copies, in order. The tensors keep their storage and identity.
    """
    with torch.no_grad():
        saved = [t.detach().clone() for t in tensors]

    def restore() -> None:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)

    restored = False
    with _one_interrupt():
        # The single Ctrl-C that is let through may strike while the inner restore runs or just
        # before it; the outer one then starts over with none left to disturb it.
        try:
            try:
                yield saved
            finally:
                restore()
                restored = True
        finally:
            if not restored:
                restore()


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Let one SIGINT through to its handler; hold back any further ones until the end of the block."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    seen = 0

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            held.append((signum, frame))
        else:
            previous(signum, frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if held:
            previous(*held[-1])


def random_state() -> list[Tensor]:
    """Return the states of torch's default generators: the CPU, then each CUDA device in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)]


def set_random_state(state: Sequence[Tensor]) -> None:
    """Put torch's default generators where :func:`random_state` found them."""
    torch.set_rng_state(state[0])
    for device, value in enumerate(state[1:]):
        torch.cuda.set_rng_state(value, device)
