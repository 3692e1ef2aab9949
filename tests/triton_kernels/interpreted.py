"""What the tests of Triton kernels share: where they run, and a device's fused multiply-add on the CPU."""

import numpy as np
import pytest
import torch
from op_cases import call
from torch.utils._pytree import tree_map

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast import triton_backend
from dartsfast.oracle import arithmetic

missing = triton_backend.missing()
needs_triton = pytest.mark.skipif(missing is not None, reason=missing or "")
DEVICE = "cpu" if triton_backend.INTERPRETED else "cuda"


def moved(args, device=DEVICE, dtype=None):
    """Return args with their tensors on ``device``, floating-point ones of ``dtype``."""
    return tree_map(lambda t: t.to(device, dtype) if isinstance(t, torch.Tensor) else t, args)


def run(name, args):
    """Return what the kernels of an operator give, on the CPU."""
    return moved(call(name, moved(args)), "cpu")


@pytest.fixture
def fused(monkeypatch):
    """Make tl.fma round once, as on devices: the interpreter's is a product and a sum.

    With it the interpreter's float32 arithmetic is a device's, but for the order of sums in tl.sum.
    """
    if triton_backend.INTERPRETED:
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        def create_fma(self, x, y, z):
            numbers = [torch.from_numpy(np.array(t.data)) for t in (x, y, z)]
            return TensorHandle(arithmetic.fma(*numbers).numpy(), z.dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, "create_fma", create_fma)


@pytest.fixture
def poisoned():
    """Fill all memory that torch allocates with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def watch(monkeypatch, *modules):
    """Return a list that takes name, grid and meta-parameters of every kernel that ``modules`` launch."""
    launches = []

    def recorder(launch):
        def record(kernel, grid, *args, **meta):
            launches.append((kernel.__name__, grid, meta))
            launch(kernel, grid, *args, **meta)

        return record

    for module in modules:
        monkeypatch.setattr(module, "launch", recorder(module.launch))
    return launches


def ulps(got, truth, dtype=torch.float32):
    """Return the largest distance from ``truth``, float64, in units of the last place of ``dtype``."""
    tiny = torch.finfo(dtype).tiny
    step = torch.finfo(dtype).eps * 2.0 ** truth.abs().clamp(min=tiny).log2().floor()
    return ((got.double() - truth).abs() / step).max().item()


def storage_error(dtype):
    """Return the largest relative error of storing as ``dtype``: the interpreter truncates to bfloat16."""
    truncated = triton_backend.INTERPRETED and dtype == torch.bfloat16
    return torch.finfo(dtype).eps * (1 if truncated else 0.5)
