"""Whether what a checkpoint holds can be the state of a run: looked at whole before any of it is used."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from dartsfast import ranks
from dartsfast.errors import InputError


def restored_config(config_cls: Any, values: Any) -> Any:
    """Return the configuration of a run from a checkpoint's ``values``.

    Options that there were not yet when the run began are as they were then, aloud.

    Raises:
        InputError: an option that is unknown or cannot work.
    """
    match("config", {}, values)
    missing = config_cls.before(values)
    match_keys("config", {field.name for field in dataclasses.fields(config_cls)}, {**missing, **values})
    if missing and ranks.first():
        shown = ", ".join(f"{name} {default!r}" for name, default in missing.items())
        warnings.warn(
            f"the run began with an earlier version, which had not the options {', '.join(missing)}: it goes "
            f"on with {shown}",
            stacklevel=2,
        )
    config = config_cls(**missing, **values)
    config.check()
    return config


def match_keys(place: str, wanted: set[Any], found: Any) -> None:
    """Raise InputError unless ``found`` is a dict with exactly the keys ``wanted``."""
    if not isinstance(found, dict):
        raise InputError(f"{place} is {_shown(found)}, not a dict")
    for what, keys in (("lacks", wanted - found.keys()), ("has, unknown here,", found.keys() - wanted)):
        if keys:
            raise InputError(f"{place} {what} {', '.join(sorted(map(str, keys)))}")


def match(place: str, wanted: Any, found: Any) -> None:
    """Raise InputError unless ``found`` has the structure, types, shapes and dtypes of ``wanted``.

    Numbers must be finite; an empty list or dict in ``wanted`` says nothing of what it will hold.
    """
    kind = next((kind for kind in (dict, Tensor) if isinstance(wanted, kind)), type(wanted))
    if not (isinstance(found, kind) if kind in (dict, Tensor) else type(found) is kind):
        raise InputError(f"{place} is {_shown(found)}, not of type {kind.__name__}")
    if isinstance(wanted, dict) and wanted:
        match_keys(place, set(wanted), found)
        for key in wanted:
            match(f"{place}.{key}", wanted[key], found[key])
    if isinstance(wanted, (list, tuple)) and wanted:
        if len(found) != len(wanted):
            raise InputError(f"{place} has {len(found)} entries, not {len(wanted)}")
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            match(f"{place}[{i}]", a, b)
    if isinstance(wanted, Tensor) and (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise InputError(
            f"{place} is {found.dtype} {list(found.shape)}, not {wanted.dtype} {list(wanted.shape)}"
        )
    check_finite(place, found)


def check_finite(place: str, found: Any) -> None:
    """Raise InputError for a NaN or infinite number or tensor anywhere in ``found``."""
    if isinstance(found, dict):
        for key, value in found.items():
            check_finite(f"{place}.{key}", value)
    elif isinstance(found, (list, tuple)):
        for i, value in enumerate(found):
            check_finite(f"{place}[{i}]", value)
    elif isinstance(found, Tensor):
        if not bool(found.isfinite().all()):
            raise InputError(f"{place} is not finite")
    elif isinstance(found, float) and not math.isfinite(found):
        raise InputError(f"{place} is {found}")


# What optimisers keep of a parameter, in its shape and as numbers.
_KEPT: dict[type[torch.optim.Optimizer], tuple[set[str], set[str]]] = {
    torch.optim.Adam: ({"exp_avg", "exp_avg_sq"}, {"step"}),
    torch.optim.ASGD: ({"ax"}, {"step", "eta", "mu"}),
    torch.optim.SGD: ({"momentum_buffer"}, set()),
}


def match_optimizer(
    place: str,
    optimizer: torch.optim.Optimizer,
    found: Any,
    *,
    begun: bool | None,
    moving: tuple[str, ...] = (),
) -> None:
    """Raise InputError unless ``found`` is a state of ``optimizer`` under the same options.

    Args:
        place: what messages call it.
        optimizer: an SGD, ASGD or Adam that has taken no step.
        found: what its ``state_dict`` returned in another process.
        begun: it has taken steps; None: perhaps.
        moving: options that change on the way.
    """
    fresh = optimizer.state_dict()
    match(place, {**fresh, "state": {}}, found)
    for i, (group, given) in enumerate(zip(fresh["param_groups"], found["param_groups"], strict=True)):
        for name in group.keys() - {"capturable", *moving}:  # capturable is the device's
            if given[name] != group[name]:
                raise InputError(
                    f"{place}.param_groups[{i}].{name} is {_shown(given[name])}, not {_shown(group[name])}"
                )
    kept, counted = next(names for cls, names in _KEPT.items() if isinstance(optimizer, cls))
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    for i, state in found["state"].items():
        here = f"{place}.state[{_shown(i)}]"
        if i not in range(len(parameters)):
            raise InputError(f"{here} is of none of the {len(parameters)} parameters")
        match_keys(here, kept | counted, state)
        for name in kept:
            match(f"{here}.{name}", parameters[i], state[name])
        for name in counted:
            match(f"{here}.{name}", torch.tensor(1.0), state[name])
        if "step" in counted and not state["step"] >= 1:
            raise InputError(f"{here}.step is {state['step'].item()}")
    if begun is not None and (counted or optimizer.defaults["momentum"]) and bool(found["state"]) != begun:
        raise InputError(f"{place}.state has {len(found['state'])} entries, begun: {begun}")


def check_progress(epochs: int, metrics: tuple[str, ...], state: dict[str, Any]) -> None:
    """Raise InputError unless a checkpoint's ``state`` is of a moment in a run of ``epochs`` epochs.

    Args:
        epochs: those of the whole run.
        metrics: names of what its iterations record.
        state: with ``epoch``, ``step``, ``sums``, ``count``, ``seconds`` and ``history``.
    """
    for name, like in (("epoch", 0), ("step", 0), ("count", 0.0), ("seconds", 0.0), ("history", [])):
        match(name, like, state[name])
        if name != "history" and state[name] < 0:
            raise InputError(f"{name} is {state[name]}")
    epoch, step, history = state["epoch"], state["step"], state["history"]
    if epoch > epochs or (step and epoch == epochs):
        raise InputError(f"epoch is {epoch} and step {step}, in a run of {epochs} epochs")
    match("sums", dict.fromkeys(metrics, 0.0) if step else {}, state["sums"])
    if bool(state["sums"]) != bool(step):
        raise InputError(f"sums has {len(state['sums'])} entries after {step} steps")
    if len(history) != epoch:
        raise InputError(f"history has {len(history)} epochs, and {epoch} are done")
    for i, row in enumerate(history):
        # Earlier versions counted from 0.
        if not isinstance(row, dict) or row.get("epoch") not in (i, i + 1):
            raise InputError(f"history[{i}] is {_shown(row)}, not the row of epoch {i + 1}")
        for name, value in row.items():
            if not isinstance(name, str) or type(value) not in (int, float):
                raise InputError(f"history[{i}] has {_shown(name)}: {_shown(value)}, not a number")


def check_images(batches: Any, state: dict[str, Any]) -> None:
    """Raise InputError unless step and count of ``state`` are of one moment in a pass of ``batches``."""
    step, images = state["step"], batches.images
    if step > len(batches) or state["count"] != min(step * batches.whole, images):
        raise InputError(
            f"step is {step} after {state['count']:g} images, in an epoch of {len(batches)} "
            f"steps and {images} images"
        )


def check_cosine(scheduler: Any, epochs: int, state: dict[str, Any], then: float | None = None) -> None:
    """Raise InputError unless the kept schedule, and the optimiser's rate, are those of the epoch.

    Args:
        scheduler: a cosine that has taken no step.
        epochs: that it takes.
        state: of the run.
        then: the rate once they are done; None: that of the cosine.
    """
    (first,), last = scheduler.base_lrs, scheduler.eta_min
    if then is not None and state["epoch"] >= epochs:
        return _check_schedule(scheduler, then, state)
    planned = last + (first - last) * (1 + math.cos(math.pi * state["epoch"] / epochs)) / 2
    return _check_schedule(scheduler, planned, state)


def check_step(scheduler: Any, state: dict[str, Any]) -> None:
    """Raise InputError unless the kept schedule, and the optimiser's rate, are those of the epoch."""
    (first,) = scheduler.base_lrs
    _check_schedule(scheduler, first * scheduler.gamma ** (state["epoch"] // scheduler.step_size), state)


def _check_schedule(scheduler: Any, planned: float, state: dict[str, Any]) -> None:
    kept, fresh, epoch = state["extra"]["scheduler"], scheduler.state_dict(), state["epoch"]
    (lr,), (first,) = kept["_last_lr"], fresh["base_lrs"]
    for rate in (lr, state["optimizer"]["param_groups"][0]["lr"]):
        if abs(rate - planned) > 1e-6 * first or rate != lr:
            raise InputError(f"the learning rate is {rate} in epoch {epoch}, planned is {planned}")
    expected = {**fresh, "last_epoch": epoch, "_step_count": epoch + 1, "_last_lr": [lr]}
    for name, value in expected.items():
        if kept[name] != value:
            raise InputError(f"extra.scheduler.{name} is {kept[name]}, not {value}")


def check_pieces(data: Any) -> None:
    """Raise InputError unless ``data`` has the form of a fingerprint."""
    match("data", {}, data)
    for name, part in data.items():
        match(f"data.{name}", {"unit": "", "count": 0, "by": "", "pieces": {}}, part)
        for piece, value in part["pieces"].items():
            match(f"data.{name}.pieces[{_shown(piece)}]", [0, ""], value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
