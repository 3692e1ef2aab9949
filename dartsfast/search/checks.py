"""Which options of a CNN search go together; they have been checked one by one before."""

from __future__ import annotations

from typing import Any

from dartsfast.errors import InputError
from dartsfast.names import MEMORY_MODES

ONE_CELL = ("darts", "gdas", "drnas")  # whose mixing weights are a row an edge, in any space
DRAWING = ("gdas", "drnas", "p-darts")  # of which every pass draws something
STAGES = 3  # of P-DARTS


def check_accumulation(config: Any) -> None:
    """Raise InputError where the options of a CNN search do not go with ``accumulate``."""
    parts = config.accumulate
    if config.batch_size % parts:
        raise InputError(
            f"accumulate must divide batch_size, {config.batch_size} images, into equal parts, got {parts}"
        )
    if parts == 1:
        if "accumulate_statistics" in config.stated():
            raise InputError(
                f"accumulate_statistics {config.accumulate_statistics} needs parts of a batch: --accumulate 4"
            )
    elif config.accumulate_statistics == "part":
        _check_parts(config)
    else:
        _check_whole_batch(config)


def _check_parts(config: Any) -> None:
    if config.sync_bn:
        raise InputError("sync_bn takes statistics over all images of a batch: leave accumulate out")
    anew = f"method {config.method}" if config.method in DRAWING else "smooth" if config.smooth else None
    if anew:
        raise InputError(
            f"accumulate adds up the gradients of one network, and --{anew} draws another for every part "
            "of a batch: leave one of them out, or choose --accumulate_statistics batch"
        )


def _check_whole_batch(config: Any) -> None:
    """Raise InputError where nothing could be planned, or something else says how cells keep."""
    other = "or --accumulate_statistics part, which takes the parts of a batch one after the other"
    if "memory" in config.stated():
        raise InputError(
            f"accumulate {config.accumulate} chooses itself how every cell keeps its images, and so does "
            f"memory {config.memory}: leave one of them out, {other}"
        )
    if config.backend == "reference":
        raise InputError(
            "accumulate with the statistics of the batch is planned from programs, and the reference path "
            f"has none: choose --memory cell, which takes the least there, {other}"
        )
    if config.space == "nasbench201":
        raise InputError(
            "accumulate with the statistics of the batch is of the cells of DARTS: with --space nasbench201 "
            f"choose --memory recompute, {other}"
        )


def check_space(config: Any) -> None:
    """Raise InputError where the options of a CNN search do not go with its space."""
    if config.space != "nasbench201":
        if "stage_cells" in config.stated():
            raise InputError(f"stage_cells is of --space nasbench201, and the space is {config.space}")
        return
    if config.method not in ONE_CELL:
        raise InputError(
            f"--method {config.method} searches the cells of DARTS: --space nasbench201 has those of "
            f"{', '.join(ONE_CELL)}"
        )
    if config.memory not in MEMORY_MODES:
        raise InputError(
            f"memory {config.memory} is of the cells of DARTS: with --space nasbench201 choose one of "
            f"{', '.join(MEMORY_MODES)}"
        )
    if "layers" in config.stated():
        raise InputError(
            "layers counts cells of DARTS: with --space nasbench201 --stage_cells says how many each of "
            "the three stages has"
        )
    for name in ("storage_dtype", "auxiliary_skip", "select", *(["stop"] if config.most_skips else [])):
        value = getattr(config, name)
        if value != getattr(type(config), name):
            raise InputError(
                f"{name} {value} is of the cells of DARTS: leave it out with --space nasbench201"
            )


def check_stages(config: Any) -> None:
    """Raise InputError where the options of a search by P-DARTS do not make its stages."""
    rates = config.pdarts_rates.split(",")
    if len(rates) != STAGES or not all(_is_rate(text) for text in rates):
        raise InputError(
            "pdarts_rates must be the rates of three stages, each from 0 to below 1, such as 0,0.4,0.7, "
            f"got {config.pdarts_rates!r}"
        )
    if config.epochs % STAGES:
        raise InputError(f"epochs must be those of three equal stages, such as 75, got {config.epochs}")
    if config.space != "darts" or config.stop != "none":
        what = f"--space {config.space}" if config.space != "darts" else f"--stop {config.stop}"
        raise InputError(f"p-darts has stages of its own, of 8, 5 and 3 operations, and cannot have {what}")


def _is_rate(text: str) -> bool:
    try:
        return 0 <= float(text) < 1
    except ValueError:
        return False
