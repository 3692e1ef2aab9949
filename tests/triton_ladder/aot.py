"""Compiles what launches Triton kernels ahead of time, for GPUs that need not be there."""

import contextlib
import itertools
from unittest import mock

import torch
import triton
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CHOSEN = (
    *("BP", "BC", "BO", "BT", "BB", "BH", "BLOCK", "COLUMNS", "LANES", "PARTS", "ROWS", "STEPS"),
    *("maxnreg", "num_stages", "num_warps"),
    *("AGAIN", "BY_INPUT", "BY_WEIGHTS", "HALVES", "IN_PLACE", "POOLED", "NORMED", "SUMMED"),
)
"""Arguments of launches that heuristics choose, or that leave out so much that all of them are compiled; the
others say what is computed."""
LARGE = 1 << 16  # elements of a tensor that is worth 16-byte accesses


class TargetDriver:
    """What Triton asks of a GPU's driver before a launch."""

    def __init__(self, name):
        self.name = name

    def get_current_target(self):
        return TARGETS[self.name]

    def get_current_device(self):
        return self.name  # kernels are kept by device

    def get_current_stream(self, device):
        return 0


class Launch:
    """A launch by its arguments: ``configuration`` is what heuristics chose of it, and for what storage."""

    def __init__(self, kernel, args, options):
        values = tree_leaves((args, list(options.values())))
        self.tensors = [value for value in values if isinstance(value, torch.Tensor)]
        chosen = tuple((name, options[name]) for name in CHOSEN if name in options)
        narrowest = min(t.element_size() for t in self.tensors if t.is_floating_point())
        self.configuration = kernel.__name__, chosen, f"{8 * narrowest} bits"


class Compiled:
    """A launch that was compiled: ``asm`` holds its stages, ``metadata`` what Triton chose."""

    def __init__(self, kernel, target, launch):
        self.name, self.target, self.hash = kernel.src.fn.__name__, target, kernel.hash
        self.configuration, tensors = launch.configuration, launch.tensors
        self.asm, self.metadata = kernel.asm, kernel.metadata
        places = kernel.src.fn.arg_names
        self.constants = {places[path[0]]: value for path, value in kernel.src.constants.items()}
        self.dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors}
        self.large = any(t.numel() >= LARGE for t in tensors)


@contextlib.contextmanager
def _launching(target, run):
    """Within the context call ``run`` in place of Triton's method, as if a GPU of ``target`` were here."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 makes kernels that cannot be compiled: run without it")
    before = driver._active
    driver.set_active(TargetDriver(target))
    try:
        with mock.patch.object(triton.JITFunction, "run", run):
            yield
    finally:
        driver._active = before


def launched(call, target):
    """Return the launches of ``call()``, of which none is compiled or run."""
    found = []

    def record(self, *args, grid, warmup, **options):
        found.append(Launch(self.fn, args, options))

    with _launching(target, record):
        call()
    return found


def compiled(call, target, places=None):
    """Return what ``call()`` launches, compiled for ``target``; tensors are on the CPU, none is touched.

    ``places``: which of the launches, counted from 0; None for all.
    """
    run, found, place = triton.JITFunction.run, [], itertools.count()

    def compile_only(self, *args, grid, warmup, **options):
        if places is None or next(place) in places:
            kernel = run(self, *args, grid=grid, warmup=True, **options)
            found.append(Compiled(kernel, target, Launch(self.fn, args, options)))

    with _launching(target, compile_only):
        call()
    return found
