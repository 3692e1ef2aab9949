"""Optional: the fastest of the few ways to launch a kernel, timed once and kept on disk.

Off unless ``DARTSFAST_AUTOTUNE=1`` is in the environment; without it kernels are launched as the function
``tile`` beside each says. What is chosen never changes a bit: the depth of software pipelines, and the
number of warps only where no number is the sum of several threads'. Kernels that write what they read are
left out, as timing runs them again and again. A choice is by device, Triton, kernel, sizes and constants.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.runtime.errors import OutOfResources

from dartsfast.errors import InputError

Options = dict[str, int]

WARPS = tuple({"num_warps": warps} for warps in (2, 4, 8))
STAGES = tuple({"num_stages": stages} for stages in (1, 2, 3))
CHOICES = {
    **dict.fromkeys(("mixed_sum_kernel", "pool3x3_place_kernel", "pool3x3_backward_kernel"), WARPS),
    **dict.fromkeys(("branch_conv_kernel", "pointwise_adjoint_kernel", "input_gradient_kernel"), STAGES),
    **dict.fromkeys(("pointwise_gradient_kernel", "depthwise_gradient_kernel"), STAGES),
}
"""What may be changed of a launch, by the kernel's name."""


def cache_path() -> Path:
    """Return where choices are kept: ``DARTSFAST_AUTOTUNE_CACHE``, or a file in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DARTSFAST_AUTOTUNE_CACHE") or base / "dartsfast" / "autotune.json")


class Tuner:
    """Chooses launch options, and keeps what it chose in a JSON file.

    Args:
        path: the file; made where there is none.
        clock: returns milliseconds of a function that launches a kernel.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, path: Path, clock: Callable[[Callable[[], None]], float]) -> None:
        self.path, self.clock = path, clock
        self.chosen: dict[str, Options] = self._read()

    def options(self, name: str, key: str, run: Callable[..., None]) -> Options:
        """Return the options that make ``run(**options)``, a launch of kernel ``name``, fastest.

        ``key`` says for what: device, sizes and constants. Equal times: the first of :data:`CHOICES`. An
        option that the device has no room for is passed over; with none left, nothing is changed.
        """
        if name not in CHOICES:
            return {}
        key = f"{name} {key}"
        if key not in self.chosen:
            times: dict[int, float] = {}
            for i, options in enumerate(CHOICES[name]):
                with contextlib.suppress(OutOfResources):
                    times[i] = self.clock(functools.partial(run, **options))
            self.chosen[key] = CHOICES[name][min(times, key=times.__getitem__)] if times else {}
            self._write()
        return self.chosen[key]

    def _read(self) -> dict[str, Options]:
        if not self.path.exists():
            return {}
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path} is no cache of launch options ({error}): delete it") from error

    def _write(self) -> None:
        """Add this process's choices to what others wrote; the file is never half written."""
        self.chosen = {**self._read(), **self.chosen}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        part.write_text(json.dumps(self.chosen, indent=0, sort_keys=True), encoding="utf-8")
        part.replace(self.path)


@functools.cache
def tuner() -> Tuner | None:
    """Return this process's tuner; None where tuning is off."""
    on = os.environ.get("DARTSFAST_AUTOTUNE") == "1" and not triton.knobs.runtime.interpret
    return Tuner(cache_path(), triton.testing.do_bench) if on else None


def tuned(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], meta: dict[str, Any]) -> Options:
    """Return what to change of the launch ``kernel[grid](*args, **meta)``: nothing where tuning is off."""
    found = tuner()
    if found is None:
        return {}
    name, key = kernel.__name__, described(args, meta)
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if capturing and f"{name} {key}" not in found.chosen:
        return {}  # a graph that is recorded cannot be timed
    return found.options(name, key, lambda **options: kernel[grid](*args, **{**meta, **options}))


def described(args: tuple[Any, ...], meta: dict[str, Any]) -> str:
    """Return what a choice depends on: device, Triton, dtypes, sizes and constants, in one line."""
    values = tree_leaves(args)
    device = next(v.device for v in values if isinstance(v, Tensor))
    name = torch.get_device_module(device).get_device_name(device)
    sizes = [str(v.dtype) if isinstance(v, Tensor) else str(v) for v in values]
    return " ".join([name, triton.__version__, *sizes, *(f"{k}={v}" for k, v in sorted(meta.items()))])
