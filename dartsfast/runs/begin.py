"""Begin a run in a folder of its own, or go on with one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from dartsfast.data import check_fingerprint
from dartsfast.errors import InputError
from dartsfast.runs.checkpoint import CURRENT, has_checkpoint, load_checkpoint, one_line
from dartsfast.runs.fit import check_pieces, check_progress, match_keys, restored_config
from dartsfast.runs.folder import locked, new_folder, refuse_used
from dartsfast.runs.options import here
from dartsfast.runs.run import STATE, Run


def begin(run_cls: type[Run], config: Any, resume: str | Path | None) -> Any:
    """Start the run that ``config`` describes, or go on with the run at ``resume``."""
    config.check()
    resume = None if resume is None else os.path.expanduser(resume)
    _check_name(config.out if resume is None else resume)
    if resume is not None:
        config = dataclasses.replace(config, data=run_cls.absolute_data(config.data))
        return _go_on(run_cls, config, Path(resume).resolve())
    config = run_cls.settle(config)
    if config.out:
        refuse_used(Path(config.out))  # before the data are read
    run = run_cls(config)
    out = Path(config.out) if config.out else new_folder(run.kind)
    with locked(out):
        refuse_used(out)
        return run.run(out)


def _check_name(folder: str) -> None:
    """Raise InputError for the name of a folder that TensorBoard, which takes UTF-8, could not open."""
    try:
        folder.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the name of the folder {folder!a} has bytes that are no characters in this locale: "
            "set LC_ALL=C.UTF-8, or choose another --out"
        ) from error


def _go_on(run_cls: type[Run], config: Any, path: Path) -> Any:
    if not (has_checkpoint(path) if path.is_dir() else path.exists()):
        raise InputError(f"no checkpoint at {path}: give the folder of a run, or start without --resume")
    folder = path if path.is_dir() else path.parent
    with locked(folder):
        state = load_checkpoint(path, run_cls.kind)
        misfit = f"the checkpoint in {path} does not fit this version of dartsfast, or was edited"
        try:
            match_keys("the state", {*STATE, *run_cls.optimizer_names}, state)
            own = restored_config(type(config), state["config"])
            check_progress(own.epochs, run_cls.metrics, state)
            check_pieces(state["data"])
            if state["epoch"] == own.epochs:
                checkpoint = path / CURRENT if path.is_dir() else path
                result = run_cls.finished(folder, checkpoint, state)
                print(
                    f"the {run_cls.noun} in {folder} is finished: all {own.epochs} epochs are done",
                    flush=True,
                )
                return result
        except InputError as error:
            raise InputError(f"{misfit}: {error}") from error
        run = _run_again(run_cls, config, own, folder)
        check_fingerprint(run.config.data, state["data"], run.fingerprint)
        try:
            run.check_state(state)
            run.load_state(state)
        except (InputError, RuntimeError) as error:
            raise InputError(f"{misfit}: {one_line(error)}") from error
        return run.run(folder)


def _run_again(run_cls: type[Run], config: Any, own: Any, folder: Path) -> Run:
    """Return a run under the configuration ``own`` of the run, but for what ``config`` says of here."""
    now = here(config)
    if config.data != type(config).data:
        now["data"] = config.data
    try:
        return run_cls(dataclasses.replace(own, **now))
    except InputError as error:
        raise InputError(
            f"cannot go on with the run in {folder}: {error}. If its data lie elsewhere now, give --data"
        ) from error
