"""How much runs say on the console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

QUIET, NORMAL, VERBOSE = "quiet", "normal", "verbose"
_DETAIL: ContextVar[str] = ContextVar("detail", default=NORMAL)


def detail() -> str:
    """Return how much runs say here: :data:`QUIET`, :data:`NORMAL` or :data:`VERBOSE`."""
    return _DETAIL.get()


@contextmanager
def saying(much: str) -> Iterator[None]:
    """Have the runs that begin within say ``much``; it changes nothing of what they compute or leave."""
    token = _DETAIL.set(much)
    try:
        yield
    finally:
        _DETAIL.reset(token)
