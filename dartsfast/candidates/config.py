"""Options of competitions: those of the searches and trainings within, with other defaults.

``--help`` reads them, so this module imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from dartsfast.errors import InputError
from dartsfast.runs.options import DATA, OPTIMISATION, SEARCHES, TRAININGS, RunOptions, option
from dartsfast.search.config import CNNConfig, RNNConfig
from dartsfast.train.config import CNNTrainingOptions, RNNTrainingOptions, TrainCNNConfig, TrainRNNConfig

_SHARED = ("data", "download", "image_size", "max_images", "train_portion", "seed")
"""Options of a selection that its searches and trainings have in common, beside those of every run."""


@dataclass(frozen=True)
class RandomCNNConfig(CNNTrainingOptions):
    """Options of the random baseline (paper section 3.2): cells drawn at random, each trained briefly."""

    candidates: int = option(24, "cells to draw, the k-th with the seed --seed + k")
    epochs: int = option(100, "passes over the training data, for each cell", group=OPTIMISATION)
    train_portion: float = option(
        0.5, "share of the training images to train on; the others are validated on", group=DATA
    )

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        return (*super().positive(), "candidates")

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        super().check()
        _check_held_out(self.train_portion)

    @classmethod
    def protocol(cls, name: str) -> dict[str, Any]:
        """Return what a protocol says of these options, all but the epochs: trainings are brief."""
        return {option: value for option, value in super().protocol(name).items() if option != "epochs"}

    def training(self, arch: str, folder: str) -> TrainCNNConfig:
        """Return the options of the training of the cell ``arch`` in ``folder``."""
        return TrainCNNConfig(**{**_options(self, CNNTrainingOptions), "arch": arch, "out": folder})


@dataclass(frozen=True)
class RandomRNNConfig(RNNTrainingOptions):
    """Options of the random baseline of the RNN (paper section 3.2): its cells are few and trained longer."""

    candidates: int = option(8, "cells to draw, the k-th with the seed --seed + k")
    epochs: int = option(300, "passes over the training text, for each cell", group=OPTIMISATION)

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        return (*super().positive(), "candidates")

    def training(self, arch: str, folder: str) -> TrainRNNConfig:
        """Return the options of the training of the cell ``arch`` in ``folder``."""
        return TrainRNNConfig(**{**_options(self, RNNTrainingOptions), "arch": arch, "out": folder})


def _options(config: Any, config_cls: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config_cls)}


@dataclass(frozen=True)
class Selection(RunOptions):
    """What every selection has beside the options of its searches and of its trainings."""

    searches: int = option(4, "searches, the k-th with the seed --seed + k")
    search_config: ClassVar[Any]
    training_config: ClassVar[Any]
    protocols: ClassVar[dict[str, dict[str, Any]]]
    protocol_prefix: ClassVar[str] = "train_"

    @classmethod
    def protocol(cls, name: str) -> dict[str, Any]:
        """Return what a protocol of trainings says of these options, all but the epochs: they are brief."""
        own = {field.name for field in dataclasses.fields(cls)}
        given = cls.training_config.protocol(name)
        return {
            option if option in own else f"{cls.protocol_prefix}{option}": value
            for option, value in given.items()
            if option != "epochs"
        }

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        return ("searches",)

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        super().check()
        for prefix, part in (("search", self.search(0, "")), ("train", self.training("DARTS", ""))):
            try:
                part.check()
            except InputError as error:
                raise InputError(f"of the options --{prefix}_...: {error}") from error
        if getattr(self, "search_space", "") == "nasbench201":
            raise InputError(
                "the cells of nasbench201 are not trained here: search with `dartsfast search cnn`, and look "
                "the cells up with `dartsfast query nasbench201`"
            )
        if hasattr(self, "train_portion"):
            _check_held_out(self.train_portion)

    def search(self, number: int, folder: str) -> Any:
        """Return the options of a search, by its number, in ``folder``."""
        seed = self.seed + number  # type: ignore[attr-defined]
        return self.search_config(**{**self._part("search", self.search_config), "seed": seed, "out": folder})

    def training(self, arch: str, folder: str) -> Any:
        """Return the options of the training of the cell ``arch`` in ``folder``."""
        own = self._part("train", self.training_config)
        return self.training_config(**{**own, "arch": arch, "out": folder})

    def _part(self, prefix: str, config_cls: Any) -> dict[str, Any]:
        own, stated = {field.name for field in dataclasses.fields(self)}, self.stated()
        found = {}
        for field in dataclasses.fields(config_cls):
            name = field.name if field.name in own else f"{prefix}_{field.name}"
            # What is not given here does not count as given there.
            if field.name != "arch" and (name in stated or getattr(self, name) != field.default):
                found[field.name] = getattr(self, name)
        return found


def _check_held_out(portion: float) -> None:
    if not portion < 1:
        raise InputError(f"train_portion must be below 1, got {portion}: cells are chosen by images held out")


def _fields(prefix: str, config_cls: Any, group: str, **defaults: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the options of ``config_cls`` that are not shared, as ``prefix``_..., ``defaults`` first."""
    shared = {*_SHARED, "arch", *(field.name for field in dataclasses.fields(RunOptions))}
    for field in dataclasses.fields(config_cls):
        if field.name not in shared:
            default = defaults.get(field.name, field.default)
            how = field.metadata["help"], field.metadata["choices"]
            yield f"{prefix}_{field.name}", field.type, option(default, *how, group=group)


def _selection(name: str, search_config: Any, training_config: Any, **training: Any) -> Any:
    shared = [
        (field.name, field.type, option(field.default, field.metadata["help"], group=field.metadata["group"]))
        for field in dataclasses.fields(search_config)
        if field.name in _SHARED
    ]
    fields = [
        *shared,
        *_fields("search", search_config, SEARCHES),
        *_fields("train", training_config, TRAININGS, **training),
    ]
    own = {
        "search_config": search_config,
        "training_config": training_config,
        "protocols": training_config.protocols,
        "__module__": __name__,
        "__doc__": "Options of a selection among searches with several seeds (paper section 3.2).",
    }
    return dataclasses.make_dataclass(name, fields, bases=(Selection,), frozen=True, namespace=own)


SelectCNNConfig: Any = _selection("SelectCNNConfig", CNNConfig, TrainCNNConfig, epochs=100)
SelectRNNConfig: Any = _selection("SelectRNNConfig", RNNConfig, TrainRNNConfig, epochs=300)
