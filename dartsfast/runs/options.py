"""Options of runs, declared once for scripts and commands.

``--help`` reads them, so this module imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dartsfast.errors import InputError

# How the command line arranges them, in this order.
GROUPS = ("data", "network", "optimisation", "method", "searches", "trainings", "run")
DATA, NETWORK, OPTIMISATION, METHOD, SEARCHES, TRAININGS, RUN = GROUPS
HERE = ("device", "checkpoint_seconds", "workers")  # options of a process, not of a run
MOVED = ("data", "memory")  # those of a run that may be others when it goes on: they change no bit


def option(default: Any, help: str, choices: tuple[Any, ...] = (), *, group: str = RUN) -> Any:
    """Declare a field whose help, choices and group (one of :data:`GROUPS`) the command line shows."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "group": group})


def here(config: Any) -> dict[str, Any]:
    """Return those options of ``config`` that are of a process, not of a run."""
    return {name: getattr(config, name) for name in HERE if hasattr(config, name)}


def check_tied(config: Any) -> None:
    """Raise InputError unless all features of an RNN, whose decoder is its embedding, are as many."""
    if not config.emsize == config.nhid == config.nhidlast:
        raise InputError(
            "emsize, nhid and nhidlast must be equal (the decoder is tied to the embedding), "
            f"got {config.emsize}, {config.nhid} and {config.nhidlast}"
        )


class _Given:
    """Notes what its constructor is given; not among ``vars``, which a script may make another one of."""

    __slots__ = ("given",)
    given: frozenset[str]

    def __new__(cls, *args: Any, **options: Any) -> Any:
        made = super().__new__(cls)
        names = [field.name for field in dataclasses.fields(cls)][: len(args)]  # type: ignore[arg-type]
        object.__setattr__(made, "given", frozenset((*names, *options)))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "given": self.given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Options(_Given):
    """Options that know what cannot work, and which of them were given, if only as they would be by default.

    Attributes:
        given: their names; :func:`dataclasses.replace` gives all of them, :meth:`but` those that it changes.
    """

    def but(self, **options: Any) -> Any:
        """Return the same with ``options``, which count as given."""
        changed = dataclasses.replace(self, **options)
        object.__setattr__(changed, "given", self.given | options.keys())
        return changed

    @classmethod
    def before(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that ``values`` of an earlier version lack, as they were there."""
        return {field.name: field.default for field in dataclasses.fields(cls) if field.name not in values}

    @classmethod
    def kept(cls, values: Mapping[str, Any]) -> Any:
        """Return the options that were written down as ``values``: none counts as given at its default."""
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        return cls(**{
            name: value
            for name, value in values.items()
            if name not in defaults or (type(value), value) != (type(defaults[name]), defaults[name])
        })  # fmt: skip

    def stated(self) -> set[str]:
        """Return the names of the options that were given, if only as by default, or are not at it.

        Who gives most of them, such as a copy, means nothing by those at their defaults.
        """
        fields = dataclasses.fields(self)
        given = self.given if len(self.given) < len(fields) / 2 else frozenset()
        return {f.name for f in fields if f.name in given or getattr(self, f.name) != f.default}

    def __post_init__(self) -> None:
        # Checkpoints hold plain values, of one type each.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, field.name, os.fspath(value))
            elif type(value) is int and isinstance(field.default, float):
                object.__setattr__(self, field.name, float(value))

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if field.default is None and value is None:  # left alone, of yes and no
                continue
            wanted: Any = bool if field.default is None else type(field.default)
            if type(value) is not wanted:
                raise InputError(f"{field.name} must be of type {wanted.__name__}, got {value!r}")
            if choices and value not in choices:
                raise InputError(f"{field.name} must be one of {', '.join(map(str, choices))}, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{field.name} must be a finite number, got {value}")
            if field.name == "seed" and not -(2**63) <= value < 2**64:
                raise InputError(f"seed must fit 64 bits, got {value}")
            if field.name in self.positive() and not value > 0:
                raise InputError(f"{field.name} must be above 0, got {value}")
            if (
                isinstance(value, (int, float))
                and value < 0
                and not field.name.endswith(("seed", "small_batch_size"))
            ):
                raise InputError(f"{field.name} must not be negative, got {value}")
            if ("dropout" in field.name or field.name == "drop_path_prob") and value >= 1:
                raise InputError(f"{field.name} must be below 1, got {value}")

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        return ("epochs", "batch_size")


@dataclass(frozen=True)
class RunOptions(Options):
    """What every run takes."""

    out: str = option("", "folder of the run (default: runs/<kind>-<time>)")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    checkpoint_seconds: float = option(60.0, "time between checkpoints within an epoch; 0: every iteration")

    @property
    def all_epochs(self) -> int:
        """Epochs of the whole run, which may have some beside the option ``epochs``."""
        return self.epochs  # type: ignore[attr-defined]  # every run has it

    def moved(self, **options: Any) -> Any:
        """Return those of a run that goes on with other ``options``, of :data:`MOVED` and :data:`HERE`."""
        return dataclasses.replace(self, **options)

    def called(self, epoch: int) -> str:
        """Return what is said of an epoch, which counts from 1."""
        return f"epoch {epoch}/{self.all_epochs}"

    def counted(self, epochs: int) -> str:
        """Return what is said of so many epochs that are done."""
        return f"{epochs} epoch{'s' * (epochs != 1)}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.out, str):  # a shell leaves the ~ of --out=~/x to us
            object.__setattr__(self, "out", os.path.expanduser(self.out))
