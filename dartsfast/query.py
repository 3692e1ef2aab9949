"""What the table of a benchmark says of a cell: NAS-Bench-201 as NATS-Bench publishes it.

The table is the user's, and the package ``nats_bench`` reads it. It holds pickles, which can run anything
when they are read: take those of its authors.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

from dartsfast.errors import InputError
from dartsfast.genotypes import NB201, resolve_genotype

DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
EPOCHS = (12, 200)
TABLE = "NATS-tss-v1_0-3ffb9"
PARTS = {"train": "train", "valid": "validation", "test": "test"}


def query_nasbench201(
    genotype: str, table: str | None = None, dataset: str = DATASETS[0], epochs: int = EPOCHS[1]
) -> dict[str, Any]:
    """Return what a table says of a cell, the mean over its trainings.

    Args:
        genotype: the cell, as :func:`dartsfast.genotypes.resolve_genotype` takes it.
        table: the folder ``NATS-tss-v1_0-3ffb9-simple`` or the file ``NATS-tss-v1_0-3ffb9.pickle.pbz2``; None
            for that in $TORCH_HOME, or in ``~/.torch``.
        dataset: one of :data:`DATASETS`.
        epochs: of training, one of :data:`EPOCHS`.

    Returns:
        ``architecture``, ``index`` in the table, ``dataset``, ``epochs``, ``trainings``; ``parameters`` and
        ``flops`` (of an image), in millions, ``latency`` in seconds; ``seconds`` of training; ``train``,
        ``validation`` and ``test``, each with ``accuracy`` in percent and ``loss``. Of CIFAR-10 those of the
        validation are of networks that were trained on half of the training images, the other half. What the
        table lacks is None.

    Raises:
        InputError: no such cell, package, table, or training.
    """
    cell = resolve_genotype(genotype, NB201)
    package, place = _package(), _place(table)
    try:
        api = package.create(str(place), "tss", fast_mode=place.is_dir(), verbose=False)
    # What is no bz2 file, no pickle, or a pickle of something else.
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise InputError(f"{place} is no table that nats_bench reads ({error}): give {_wanted()}") from error
    index = api.query_index_by_arch(str(cell))
    if index < 0:
        raise InputError(f"the table {place} has {len(api)} cells, and {cell} is none of them")
    try:
        found = _told(api, index, dataset, epochs)
    except (AssertionError, KeyError, ValueError) as error:  # which of them depends on what is lacking
        raise InputError(
            f"the table {place} has no {epochs} epochs on {dataset} of {cell} ({error!r}): choose others"
        ) from error
    return {"architecture": str(cell), "index": index, "dataset": dataset, "epochs": epochs, **found}


def _package() -> ModuleType:
    try:
        import nats_bench
    except ModuleNotFoundError as error:
        raise InputError(
            f"tables are read by nats_bench, and {error.name} is not installed: pip install "
            "'dartsfast[tables]', or pip install nats_bench"
        ) from error
    return nats_bench


def _wanted() -> str:
    return (
        f"with --table the folder {TABLE}-simple (or the file {TABLE}.pickle.pbz2), which "
        "https://github.com/D-X-Y/NATS-Bench says where to get"
    )


def _place(table: str | None) -> Path:
    if table is None:
        home = Path(os.environ.get("TORCH_HOME", "~/.torch")).expanduser()
        usual = [home / f"{TABLE}-simple", home / f"{TABLE}.pickle.pbz2"]
    else:
        usual = [Path(table).expanduser()]
    found = next((path for path in usual if path.exists()), None)
    if found is None:
        raise InputError(f"there is no table {' nor '.join(map(str, usual))}: give {_wanted()}")
    return found


def _told(api: Any, index: int, dataset: str, epochs: int) -> dict[str, Any]:
    hp = str(epochs)
    info = api.get_more_info(index, dataset, hp=hp, is_random=False)
    if dataset == "cifar10":
        half = api.get_more_info(index, "cifar10-valid", hp=hp, is_random=False)
        info |= {name: value for name, value in half.items() if name.startswith("valid-")}
    costs = api.get_cost_info(index, dataset, hp=hp)
    trainings = api.query_meta_info_by_index(index, hp=hp).get_dataset_seeds(dataset)
    return {
        "trainings": len(trainings),
        "parameters": costs["params"],
        "flops": costs["flops"],
        "latency": costs["latency"],
        "seconds": info["train-all-time"],
        **{
            name: {what: info.get(f"{part}-{what}") for what in ("accuracy", "loss")}
            for part, name in PARTS.items()
        },
    }


def print_answer(answer: dict[str, Any]) -> None:
    """Print what :func:`query_nasbench201` returns."""
    trainings = f"mean of {answer['trainings']} trainings" if answer["trainings"] > 1 else "one training"
    lines = [
        ("cell", answer["architecture"]),
        ("trained", f"{answer['epochs']} epochs on {answer['dataset']}, {trainings}"),
        ("parameters", _number(answer["parameters"], "{:.3f} M")),
        ("FLOPs", _number(answer["flops"], "{:.2f} M an image")),
        ("latency", _number(answer["latency"], "{:.4f} s")),
        ("training", _number(answer["seconds"], "{:.0f} s")),
    ]
    for name in PARTS.values():
        accuracy, loss = answer[name]["accuracy"], answer[name]["loss"]
        lines.append((name, f"{_number(accuracy, '{:.2f} %')}, loss {_number(loss, '{:.4f}')}"))
    for name, text in lines:
        print(f"{name:<11} {text}")


def _number(value: float | None, form: str) -> str:
    return "not in the table" if value is None else form.format(value)
