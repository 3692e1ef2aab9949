"""The options of a run as a file: each run leaves one in its folder, and ``--config`` reads it."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dartsfast.errors import InputError
from dartsfast.files import read_text, written_whole
from dartsfast.runs.options import HERE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = "config.toml"


def write_config(folder: Path, command: tuple[str, str], config: Any) -> None:
    """Write the options of a run that ``dartsfast`` ``command`` starts, all but its folder."""
    words = " ".join(command)
    lines = [f"# Repeated by: dartsfast {words} --config {CONFIG}", f'command = "{words}"', "", "[options]"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "out" and value is not None:
            lines.append(f"{field.name} = {_toml(value)}")
    text = "\n".join(lines) + "\n"
    with written_whole(folder / CONFIG, text.encode("utf-8", errors="surrogateescape")):
        pass


def changed_options(config: Any) -> dict[str, Any]:
    """Return the options that are not at their defaults, all but the folder, by name."""
    defaults = {field.name: field.default for field in dataclasses.fields(config) if field.name != "out"}
    values = {name: getattr(config, name) for name in defaults}
    return {name: value for name, value in values.items() if value != defaults[name]}


def repeat_command(folder: Path, command: tuple[str, str], processes: int = 1) -> str:
    """Return the command line that begins a run like the one in ``folder`` anew, in as many processes."""
    return shlex.join([*program(processes), *command, "--config", str(folder.absolute() / CONFIG)])


def resume_command(
    folder: Path, command: tuple[str, str], changed: Mapping[str, Any], processes: int = 1
) -> str:
    """Return the command line that goes on with the run in ``folder``, on the device and so on as now."""
    here = [word for name in HERE if name in changed for word in (f"--{name}", str(changed[name]))]
    return shlex.join([*program(processes), *command, "--resume", str(folder.absolute()), *here])


def program(processes: int) -> list[str]:
    """Return the words that start so many processes of the command together."""
    return ["dartsfast"] if processes == 1 else f"torchrun --nproc_per_node={processes} -m dartsfast".split()


def _toml(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # TOML's strings are JSON's, but that DEL is written as an escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_config(path: str | Path, command: tuple[str, str], config_cls: Any) -> dict[str, Any]:
    """Return the options in a file of :func:`write_config`'s form.

    Raises:
        InputError: it cannot be read, is of another command, or has an option that ``config_cls`` lacks.
    """
    command_read, options = load_config(path)
    if command_read != command:
        raise InputError(
            f"{path} has the options of `dartsfast {' '.join(command_read)}`, not of "
            f"`{' '.join(command)}`: use that command, or name what is of this one"
        )
    unknown = options.keys() - {field.name for field in dataclasses.fields(config_cls)}
    if unknown:
        raise InputError(f"{path} has options that there are not: {', '.join(sorted(unknown))}")
    return options


def load_config(path: str | Path) -> tuple[tuple[str, str], dict[str, Any]]:
    """Return the command and the options in a file; InputError where they are not there."""
    try:
        found = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML ({error}): repair it") from error
    words = found.get("command")
    options = found.get("options", {})
    parts = words.split() if isinstance(words, str) else []
    if len(parts) != 2 or not isinstance(options, dict):
        raise InputError(
            f'{path} is no configuration of a run: it needs a line such as command = "search cnn", '
            "and a table [options]"
        )
    return (parts[0], parts[1]), options
