"""The one error type for input that cannot work: what was wrong, what was got, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class InputError(ValueError):
    """Bad input from the user (data, sizes, names, options).

    The message names the value and the remedy. The command line prints it without a traceback
    and exits with status 2; scripts can catch it as a ``ValueError``.
    """


def check_range(values: Tensor, count: int, noun: str, scale: str) -> None:
    """Raise InputError where ``values`` (integers on the CPU) leave 0..count-1; ``scale`` words the bound.

    Tensors on a GPU are not looked at: that would wait for the device every iteration. Nor are those that
    stand for others in ``torch.export``.
    """
    import torch  # not above: commands that need none read this module

    if values.device.type != "cpu" or not values.numel() or torch.compiler.is_exporting():
        return
    for extreme in (values.min().item(), values.max().item()):
        if not 0 <= extreme < count:
            raise InputError(f"{noun} {extreme} does not fit {scale.format(count)} to {count - 1}")


class CheckFailedError(RuntimeError):
    """What was made does not compute what it should; the message says by how much, and what was kept."""


class BackendError(RuntimeError):
    """A backend's kernels do not compute what they should on this device."""


class DivergedError(ArithmeticError):
    """A loss or gradient became NaN or infinite; the message says where, and how to go on.

    Attributes:
        what: the same in short, of a run.
    """

    def __init__(self, message: str, what: str = "") -> None:
        super().__init__(message)
        self.what = what


class LostRankError(Exception):
    """Another of the processes that compute a run together has ended or hangs; this one cannot go on."""


class RunStopped(KeyboardInterrupt):
    """A signal stopped a run; the message says what is saved, and how to go on.

    Attributes:
        signum: the signal; the command line exits with 128 more.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


SearchStopped = RunStopped  # its name before there were other runs
