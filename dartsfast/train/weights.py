"""Weights of a trained network: as a file, and in a network for a while."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dartsfast.errors import InputError
from dartsfast.files import written_whole
from dartsfast.runs.checkpoint import one_line

WEIGHTS = "weights.pt"
PARALLEL = "module."  # what torch's DataParallel puts before names


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> Path:
    """Write a ``state_dict`` to ``folder``/weights.pt, whole or not at all, for any device.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    with written_whole(folder / WEIGHTS, weights_content(weights)):
        pass
    return folder / WEIGHTS


def weights_content(weights: Mapping[str, Tensor]) -> bytes:
    """Return the file of a ``state_dict``, for any device."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in weights.items()}, buffer)
    return buffer.getvalue()


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the ``state_dict`` in a file, such as the original's scripts save; no pickled code runs.

    That of ``train.py`` is the ``state_dict``; that of ``train_imagenet.py`` holds it by this name beside
    other things, and its ``--parallel`` put ``module.`` before the names of weights.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read the weights {path} ({error.strerror}): check the path") from error
    # What torch raises for files of others depends on their first bytes.
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} holds no weights ({one_line(error)[:300]}). Of a model that was pickled whole, as the "
            "original's rnn/train.py saves it, save the state_dict()"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    ):
        raise InputError(f"{path} holds no weights by name, but of type {type(found).__name__}")
    if all(name.startswith(PARALLEL) for name in found):
        return {name.removeprefix(PARALLEL): value for name, value in found.items()}
    return found


def load_fitting(model: nn.Module, weights: Mapping[str, Tensor], path: Path, options: str) -> None:
    """Give ``model`` the ``weights`` from ``path``.

    Raises:
        InputError: they are not of this network; ``options`` name what must be as in its training.
    """
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        own = model.state_dict()
        found, wanted = _kind(weights), _kind(own)
        if found not in ("", wanted):
            raise InputError(
                f"the weights in {path} are not of this network, but of one that `dartsfast test {found}` "
                f"tests: use that, or name those of a `train {wanted}`"
            ) from error
        raise InputError(
            f"the weights in {path} are not of this network: {_misfit(own, weights) or one_line(error)}. "
            f"{options} must be those of its training"
        ) from error


def _kind(weights: Mapping[str, Tensor]) -> str:
    """Return which network has weights of these names; nothing where none has."""
    signs = {"encoder.weight": "rnn", "classifier.weight": "cnn"}
    return next((kind for name, kind in signs.items() if name in weights), "")


def _misfit(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Say in what ``found`` differs from the weights that a network has by its nature, ``own``."""
    other = [name for name in own if name in found and found[name].shape != own[name].shape]
    said = []
    if other:
        sizes = f"{list(found[other[0]].shape)}, not {list(own[other[0]].shape)}"
        said.append(f"{_some(other)} of another size ({sizes})")
    for what, names in (("missing", own.keys() - found.keys()), ("not of it", found.keys() - own.keys())):
        if names:
            said.append(f"{_some(sorted(names))} {what}")
    return ", ".join(said)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@contextmanager
def holding(model: nn.Module, weights: Iterable[Tensor]) -> Iterator[None]:
    """Within, the parameters of ``model`` are ``weights``, in order; after it their own again."""
    own = [parameter.data for parameter in model.parameters()]
    for parameter, value in zip(model.parameters(), weights, strict=True):
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in zip(model.parameters(), own, strict=True):
            parameter.data = value
