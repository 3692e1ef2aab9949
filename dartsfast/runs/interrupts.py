"""Ctrl-C and the signals that end a job stop a run where it can go on to the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from dartsfast import ranks
from dartsfast.errors import RunStopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDING = (signal.SIGTERM, signal.SIGHUP)  # those that Python, left alone, says nothing of
TWICE = 0.3  # seconds within which a second Ctrl-C is the first one, handed on by a program around us


class StopAsked(Exception):  # noqa: N818
    """Unwinds to the loop from a place where the state of a run can be saved."""


class Stop:
    """Whether a signal has asked the run to stop, and which."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def ask(self, signum: int) -> None:
        """Ask the run to stop, as signal ``signum`` does; the first one counts."""
        if self.signum is None:
            self.signum = signum

    def check(self) -> None:
        """Raise StopAsked if a signal has come, to whichever rank: all ask at the same places."""
        if asked := max(signum or 0 for signum in ranks.gathered(self.signum)):
            self.signum = asked
            raise StopAsked


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Within, the first of :data:`SIGNALS` only asks to stop, and a second Ctrl-C strikes as it always did.

    Only the main thread can have this, and only signals that nobody has handlers for: those of the program
    around stay its own, and what it ignores (``nohup``) stays ignored. All are put back at the end.
    """
    stop = Stop()
    asked = 0.0
    before: dict[int, Any] = {}

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        now = time.monotonic()
        if stop.signum is None:
            stop.signum, asked = signum, now
            again = " (again: stop at once)" if signum == signal.SIGINT else ""
            line = f"\ndartsfast: {signal_name(signum)}: saving a checkpoint after this iteration{again}\n"
            # Not print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                if ranks.first():
                    os.write(2, line.encode())
        elif signum == signal.SIGINT and now - asked > TWICE:
            signal.signal(signum, before[signum])
            signal.raise_signal(signum)

    if threading.current_thread() is threading.main_thread():
        for each in SIGNALS:
            if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler, _strike):
                before[each] = signal.signal(each, handler)
    try:
        yield stop
    finally:
        for signum, action in before.items():
            signal.signal(signum, action)


def _strike(signum: int, frame: FrameType | None) -> None:
    raise RunStopped(f"stopped by {signal_name(signum)}", signum)


@contextmanager
def striking_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise RunStopped at once, as Ctrl-C raises KeyboardInterrupt.

    For what is between runs and has nothing to save; a run within takes them for itself while it lasts.
    Only the main thread can have this, and only signals that nobody has handlers for.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            each: signal.signal(each, _strike) for each in ENDING if signal.getsignal(each) == signal.SIG_DFL
        }
    try:
        yield
    finally:
        for signum, action in before.items():
            signal.signal(signum, action)


def signal_name(signum: int) -> str:
    """Return what a user calls the signal."""
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
