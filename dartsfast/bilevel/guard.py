"""Move tensors in place and put them back to the bit, whatever happens in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.errors import InputError

T = TypeVar("T")


@dataclass
class _Gate:
    """Where Ctrl-C waits while tensors are away from their values; one for all nested blocks."""

    shut: bool = True
    held: tuple[int, FrameType | None] | None = None


_gate: _Gate | None = None


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Restore ``tensors`` to the bit on the way out, also when the body raises or Ctrl-C strikes.

    Yields the saved copies, in order. The tensors keep their storage and identity. Ctrl-C waits until
    they are restored, but for calls through :func:`interruptible`, which it ends at once.
    """
    saved = [_room(t.detach()) for t in tensors]
    _copy(tensors, saved)
    with _interrupts_held():
        try:
            yield saved
        finally:
            _copy(saved, tensors)


def _room(tensor: Tensor) -> Tensor:
    """Return memory for a copy of ``tensor``: where it may, memory that is used again."""
    if tensor.layout is torch.strided and tensor.is_contiguous():
        return torch.ops.dartsfast.empty(tensor, tensor.shape)
    return torch.empty_like(tensor)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], to: Sequence[Tensor]) -> None:
    """Copy every tensor into another like it: those of a kind together, as a network has thousands."""
    kinds: dict[object, list[tuple[Tensor, Tensor]]] = {}
    for pair in zip(to, sources, strict=True):
        kinds.setdefault((pair[0].device, pair[0].dtype), []).append(pair)
    for pairs in kinds.values():
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])


def gradient(
    losses: Callable[[], Tensor] | Sequence[Callable[[], Tensor]],
    wrt: Sequence[Tensor],
    without: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    """Return the gradient of a loss by ``wrt``; None by one that is frozen or has no part in it.

    Of several ``losses`` it is that of their sum, one after the other, so that one graph lives at a time.
    Leaves in ``without`` take no part, so that no backward spends time on them, but for those in ``wrt``: a
    script's alphas may be parameters of its model. Ctrl-C may strike.

    Raises:
        InputError: within ``torch.inference_mode()``, where nothing has a gradient.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("a gradient was asked for within torch.inference_mode(): leave it out")
    asked = {id(t) for t in wrt}
    frozen = [t for t in without if t.requires_grad and id(t) not in asked]

    def run(loss_fn: Callable[[], Tensor]) -> list[Tensor | None]:
        with torch.enable_grad():
            loss = loss_fn()
        learning = [t for t in wrt if t.requires_grad]
        if not loss.requires_grad or not learning:
            return [None] * len(wrt)
        found = iter(torch.autograd.grad(loss, learning, allow_unused=True))
        return [next(found) if t.requires_grad else None for t in wrt]

    def run_all() -> list[Tensor | None]:
        first, *others = [losses] if callable(losses) else losses
        total = run(first)
        for loss_fn in others:
            for i, g in enumerate(run(loss_fn)):
                before = total[i]
                total[i] = g if before is None else before if g is None else before + g
        return total

    for t in frozen:
        t.requires_grad_(False)
    try:
        return interruptible(run_all)
    finally:
        for t in frozen:
            t.requires_grad_(True)


def interruptible(fn: Callable[[], T]) -> T:
    """Return ``fn()``; within :func:`preserved`, the one place that Ctrl-C may strike."""
    gate = _gate
    if gate is None or threading.current_thread() is not threading.main_thread():
        return fn()
    gate.shut = False
    try:
        return fn()
    finally:
        gate.shut = True


@contextmanager
def _interrupts_held() -> Iterator[None]:
    global _gate
    previous = signal.getsignal(signal.SIGINT)
    outermost = _gate is None and threading.current_thread() is threading.main_thread()
    if not outermost or not callable(previous):
        yield
        return
    gate = _Gate()

    def handler(signum: int, frame: FrameType | None) -> None:
        if gate.shut:
            gate.held = (signum, frame)
        else:
            gate.shut = True  # one is let through; nothing may disturb the restoring that follows
            previous(signum, frame)
            gate.shut = False  # it only took note: what it came upon goes on

    try:
        signal.signal(signal.SIGINT, handler)
        _gate = gate
        yield
    finally:
        _gate = None
        signal.signal(signal.SIGINT, previous)
        if gate.held is not None:
            previous(*gate.held)


def random_state() -> list[Tensor]:
    """Return the states of torch's default generators: the CPU, then each CUDA device in use.

    Raises:
        RuntimeError: a CUDA graph is being recorded.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "one mask for both finite-difference passes (preset='paper') needs the generator of random "
            "numbers put back, which cannot be recorded: use preset='code', or leave capture out"
        )
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)]


def set_random_state(state: Sequence[Tensor]) -> None:
    """Put torch's default generators where :func:`random_state` found them."""
    torch.set_rng_state(state[0])
    for device, value in enumerate(state[1:]):
        torch.cuda.set_rng_state(value, device)
