"""Compiles what launches Triton kernels ahead of time, for GPUs that need not be there."""

import contextlib
from unittest import mock

import triton
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
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


class Compiled:
    """A launch that was compiled: ``asm`` holds its stages, ``metadata`` what Triton chose."""

    def __init__(self, kernel, target, tensors):
        self.name, self.target, self.hash = kernel.src.fn.__name__, target, kernel.hash
        self.asm, self.metadata = kernel.asm, kernel.metadata
        places = kernel.src.fn.arg_names
        self.constants = {places[path[0]]: value for path, value in kernel.src.constants.items()}
        self.dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors}
        self.large = any(t.numel() >= LARGE for t in tensors)


@contextlib.contextmanager
def compiling(target):
    """Compile launches within the context for one of ``TARGETS`` and run none; gives the list of them."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 makes kernels that cannot be compiled: run without it")
    run, found = triton.JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        values = tree_leaves((args, list(options.values())))
        found.append(Compiled(kernel, target, [t for t in values if hasattr(t, "data_ptr")]))

    before = driver._active
    driver.set_active(TargetDriver(target))
    try:
        with mock.patch.object(triton.JITFunction, "run", compile_only):
            yield found
    finally:
        driver._active = before


def compiled(call, target):
    """Return what ``call()`` launches, compiled for ``target``; tensors are on the CPU, none is touched."""
    with compiling(target) as found:
        call()
    return found
