"""What the tests of Triton kernels share: where they run, and what they launch."""

import op_calls
import pytest
import torch
from op_calls import call

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.backends import triton as triton_backend

missing = triton_backend.missing()
needs_triton = pytest.mark.skipif(missing is not None, reason=missing or "")
DEVICE = "cpu" if triton_backend.INTERPRETED else "cuda"


def moved(args, device=DEVICE, dtype=None):
    """Return args with their tensors on ``device``, floating-point ones of ``dtype``."""
    return op_calls.moved(args, device, dtype)


def run(name, args):
    """Return what the kernels of an operator give, on the CPU."""
    return moved(call(name, moved(args)), "cpu")


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
