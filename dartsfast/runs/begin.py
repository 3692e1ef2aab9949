"""Begin a run in a folder of its own, or go on with one."""

from __future__ import annotations

import dataclasses
import os
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dartsfast import ranks
from dartsfast.bilevel.guard import random_state
from dartsfast.data import check_fingerprint
from dartsfast.errors import InputError
from dartsfast.runs.checkpoint import CURRENT, has_checkpoint, load_checkpoint, one_line
from dartsfast.runs.fit import check_pieces, check_progress, match, match_keys, restored_config
from dartsfast.runs.folder import locked, new_folder, refuse_used
from dartsfast.runs.options import MOVED, here
from dartsfast.runs.run import STATE, Run


def begin(run_cls: type[Run], config: Any, resume: str | Path | None) -> Any:
    """Start the run that ``config`` describes, or go on with the run at ``resume``.

    Where a process group is up all ranks call this, and compute the run together; only the first one sees its
    folder.
    """
    config.check()
    resume = None if resume is None else os.path.expanduser(resume)
    _check_name(config.out if resume is None else resume)
    if resume is not None:
        config = dataclasses.replace(config, data=run_cls.absolute_data(config.data))
        return _go_on(run_cls, config, Path(resume).resolve())
    config = run_cls.settle(config)
    if config.out:
        ranks.from_first(lambda: refuse_used(Path(config.out)))  # before the data are read
    run = _built(run_cls, config)
    with ExitStack() as stack:
        return run.run(ranks.from_first(lambda: _claimed(stack, config.out, run.kind)))


def _built(run_cls: type[Run], config: Any) -> Run:
    """Return a new run; what it may download is there when ranks beside the first look for it."""
    downloads = getattr(config, "download", False)
    if downloads and not ranks.first():
        ranks.gathered(None)
    run = run_cls(config)
    if downloads and ranks.first():
        ranks.gathered(None)
    ranks.seed_own_stream(config.seed)
    return run


def _claimed(stack: ExitStack, out: str, kind: str) -> Path:
    """Hold the folder of a new run until ``stack`` ends, and return it."""
    folder = (Path(out) if out else new_folder(kind)).resolve()
    stack.enter_context(locked(folder))
    refuse_used(folder)
    return folder


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
    with ExitStack() as stack:
        folder, checkpoint, state = ranks.from_first(lambda: _opened(stack, path, run_cls.kind))
        misfit = f"the checkpoint in {path} does not fit this version of dartsfast, or was edited"
        try:
            match_keys("the state", {*STATE, *run_cls.optimizer_names, *({"ranks"} & state.keys())}, state)
            own = restored_config(type(config), state["config"])
            check_progress(own.all_epochs, run_cls.metrics, state)
            check_pieces(state["data"])
            state["config"] = dataclasses.asdict(own)
            if run_cls.is_over(own, state["history"]):
                result = ranks.from_first(lambda: run_cls.finished(folder, checkpoint, state))
                if ranks.first():
                    epochs = state["epoch"]
                    verb = "is" if epochs == 1 else "are"
                    every = "all " * (1 < epochs == own.all_epochs)
                    done = f"{every}{own.counted(epochs)} {verb} done"
                    print(f"the {run_cls.noun} in {folder} is finished: {done}", flush=True)
                return result
        except InputError as error:
            raise InputError(f"{misfit}: {error}") from error
        run = _run_again(run_cls, config, own, folder)
        check_fingerprint(run.config.data, state["data"], run.fingerprint)
        try:
            run.take_form(state)
            _take_own_part(run, state)
            run.check_state(state)
            run.load_state(state)
        except (InputError, RuntimeError) as error:
            raise InputError(f"{misfit}: {one_line(error)}") from error
        return run.run(folder)


def _opened(stack: ExitStack, path: Path, kind: str) -> tuple[Path, Path, dict[str, Any]]:
    """Hold the folder of a run until ``stack`` ends; return it, its checkpoint and what that holds."""
    if not (has_checkpoint(path) if path.is_dir() else path.exists()):
        raise InputError(f"no checkpoint at {path}: give the folder of a run, or start without --resume")
    folder = path if path.is_dir() else path.parent
    stack.enter_context(locked(folder))
    return folder, path / CURRENT if path.is_dir() else path, load_checkpoint(path, kind)


def _take_own_part(run: Run, state: dict[str, Any]) -> None:
    """Have ``state`` be this rank's; from another number of ranks, aloud, at the beginning of its epoch."""
    match_keys("extra", set(run.extra_state()), state["extra"])
    every: list[dict[str, Any]] = state.pop("ranks", [{"random": state["random"], "extra": {}}])
    match("ranks", [{}] * len(every), every)
    for number, part in enumerate(every):
        match_keys(f"ranks[{number}]", {"random", "extra"}, part)
        if len(every) > 1:
            match_keys(f"ranks[{number}].extra", set(run.own), part["extra"])
    if ranks.rank() < len(every):
        state["random"] = every[ranks.rank()]["random"]
        state["extra"] |= every[ranks.rank()]["extra"]
    else:
        state["random"] = random_state()
    if len(every) == ranks.size():
        return
    run.earlier = len(every)
    anew = f", and epoch {state['epoch'] + 1} begins anew" if state["step"] else ""
    run.begin_epoch_anew(state)
    if ranks.first():
        warnings.warn(
            f"the {run.noun} was computed by {_processes(len(every))} and goes on with "
            f"{_processes(ranks.size())}: from here on whole batches have another size and dropouts are "
            f"others, so that the trajectory is not that of as many as before{anew}",
            stacklevel=2,
        )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _run_again(run_cls: type[Run], config: Any, own: Any, folder: Path) -> Run:
    """Return a run under the configuration ``own`` of the run, but for what ``config`` says of here."""
    now = here(config)
    for name in MOVED:
        if getattr(config, name, None) != getattr(type(config), name, None):
            now[name] = getattr(config, name)
    try:
        return _built(run_cls, own.moved(**now))
    except InputError as error:
        raise InputError(
            f"cannot go on with the run in {folder}: {error}. If its data lie elsewhere now, give --data"
        ) from error
