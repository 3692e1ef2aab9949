"""Options of the comparisons, declared once for scripts and commands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from dartsfast.errors import InputError
from dartsfast.runs.options import option

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class CommonConfig:
    """What every comparison takes; a subclass adds its network and the seed."""

    network: ClassVar[str]

    backends: tuple[str, str] = option(
        ("reference", "cpu"), "yardstick of the relative errors, and the other; twice the same is allowed"
    )
    iterations: int = option(10, "iterations: a step of the alphas and one of the weights")
    order: int = option(1, "order of the alphas' gradient", (1, 2))
    dtype: str = option("float32", "of everything", DTYPES)

    def check(self) -> None:
        """Raise InputError for a value that cannot work."""
        if len(self.backends) != 2:
            raise InputError(f"compare takes two backends, got {list(self.backends)}")
        from dartsfast.backends import resolve_backend  # with torch, which options are declared without

        for backend in self.backends:
            resolve_backend(backend)
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value not in choices:
                raise InputError(f"{field.name} must be one of {', '.join(map(str, choices))}, got {value!r}")
            if field.name in self.positive() and value < 1:
                raise InputError(f"{field.name} must be at least 1, got {value}")
            if field.name == "seed" and not 0 <= value < 2**32:
                raise InputError(f"seed must be from 0 to 2^32 - 1, got {value}")

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be at least 1."""
        return ("iterations", "batch_size")


@dataclass(frozen=True)
class CompareConfig(CommonConfig):
    """What is compared, and on which network."""

    network: ClassVar[str] = "cnn"

    batch_size: int = option(8, "images a batch")
    init_channels: int = option(16, "channels of the first cells")
    layers: int = option(8, "cells")
    seed: int = option(2, "of the weights and of the data")


@dataclass(frozen=True)
class CompareRNNConfig(CommonConfig):
    """What is compared, and on which network."""

    network: ClassVar[str] = "rnn"

    batch_size: int = option(8, "columns of text a batch")
    nhid: int = option(300, "features of the word embeddings and of the hidden state")
    bptt: int = option(35, "time steps a batch")
    vocabulary: int = option(10_000, "words")
    dropout: float = option(0.0, "every dropout; both backends draw their masks from the same random numbers")
    seed: int = option(3, "of the weights and of the data")

    def check(self) -> None:
        """Raise InputError for a value that cannot work."""
        super().check()
        if self.batch_size < 2:
            raise InputError(
                f"batch_size must be at least 2 for the cell's batch norm, got {self.batch_size}"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be from 0 to below 1, got {self.dropout}")

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be at least 1."""
        return (*super().positive(), "nhid", "bptt", "vocabulary")
