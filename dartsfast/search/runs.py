"""Begin a run in a folder of its own, or go on with one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from dartsfast.data import check_fingerprint
from dartsfast.errors import InputError
from dartsfast.genotypes import resolve_genotype
from dartsfast.search.checkpoint import CURRENT, has_checkpoint, load_checkpoint, one_line
from dartsfast.search.fit import check_pieces, check_progress, match, match_keys, restored_config
from dartsfast.search.loop import HERE, STATE, Search, SearchResult
from dartsfast.search.run_folder import locked, new_folder, refuse_used


def run_search(search_cls: type[Search], config: Any, resume: str | Path | None) -> SearchResult:
    """Start the search that ``config`` describes, or go on with the run at ``resume``."""
    config.check()
    resume = None if resume is None else os.path.expanduser(resume)
    _check_name(config.out if resume is None else resume)
    config = dataclasses.replace(config, data=search_cls.absolute_data(config.data))
    if resume is not None:
        return _go_on(search_cls, config, Path(resume).resolve())
    if config.out:
        refuse_used(Path(config.out))  # before the data are read
    search = search_cls(config)
    out = Path(config.out) if config.out else new_folder(search.kind)
    with locked(out):
        refuse_used(out)
        return search.run(out)


def _check_name(folder: str) -> None:
    """Raise InputError for the name of a folder that TensorBoard, which takes UTF-8, could not open."""
    try:
        folder.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the name of the folder {folder!a} has bytes that are no characters in this locale: "
            "set LC_ALL=C.UTF-8, or choose another --out"
        ) from error


def _go_on(search_cls: type[Search], config: Any, path: Path) -> SearchResult:
    if not (has_checkpoint(path) if path.is_dir() else path.exists()):
        raise InputError(f"no checkpoint at {path}: give the folder of a run, or start without --resume")
    folder = path if path.is_dir() else path.parent
    with locked(folder):
        state = load_checkpoint(path, search_cls.kind)
        misfit = f"the checkpoint in {path} does not fit this version of dartsfast, or was edited"
        try:
            match_keys("the state", set(STATE), state)
            own = restored_config(type(config), state["config"])
            check_progress(own.epochs, search_cls.metrics, state)
            check_pieces(state["data"])
            if state["epoch"] == own.epochs:
                return _finished(search_cls, folder, path, state)
        except InputError as error:
            raise InputError(f"{misfit}: {error}") from error
        search = _search_again(search_cls, config, own, folder)
        check_fingerprint(search.config.data, state["data"], search.fingerprint)
        try:
            search.check_state(state)
            search.load_state(state)
        except (InputError, RuntimeError) as error:
            raise InputError(f"{misfit}: {one_line(error)}") from error
        return search.run(folder)


def _search_again(search_cls: type[Search], config: Any, own: Any, folder: Path) -> Search:
    """Return a search under the configuration ``own`` of the run, but for what ``config`` says of here."""
    here = {name: getattr(config, name) for name in HERE}
    if config.data != type(config).data:
        here["data"] = config.data
    try:
        return search_cls(dataclasses.replace(own, **here))
    except InputError as error:
        raise InputError(
            f"cannot go on with the run in {folder}: {error}. If its data lie elsewhere now, give --data"
        ) from error


def _finished(search_cls: type[Search], folder: Path, path: Path, state: dict[str, Any]) -> SearchResult:
    """Return the result of a search that is over, from what it left; its data need not be there any more."""
    match("the model", {}, state["model"])
    alphas = {name: state["model"].get(name) for name in search_cls.alpha_shapes}
    match("the model", {name: torch.empty(shape) for name, shape in search_cls.alpha_shapes.items()}, alphas)
    genotype = resolve_genotype(str(folder))
    checkpoint = path / CURRENT if path.is_dir() else path
    print(f"the search in {folder} is finished: all {state['epoch']} epochs are done", flush=True)
    return SearchResult(genotype, alphas, state["history"], folder, checkpoint)
