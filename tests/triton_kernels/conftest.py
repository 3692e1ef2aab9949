"""Fixtures for tests of the Triton kernels."""

import importlib

import numpy as np
import pytest
import torch

from dartsfast import triton_backend
from dartsfast.oracle.arithmetic import fma


@pytest.fixture(autouse=True)
def no_selfcheck(monkeypatch):
    """Leave out the check before an operator's first use: tests count launches."""
    monkeypatch.setenv("DARTSFAST_SELFCHECK", "0")


@pytest.fixture
def exact(monkeypatch):
    """Round as devices do: Triton's interpreter rounds fma of float32 twice and cuts bfloat16 off."""
    if not triton_backend.INTERPRETED:
        return
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_fma, cast_impl = InterpreterBuilder.create_fma, InterpreterBuilder.cast_impl

    def rounded_once(self, a, b, c):
        if a.data.dtype != np.float32:
            return create_fma(self, a, b, c)
        return TensorHandle(fma(*(torch.tensor(h.data) for h in (a, b, c))).numpy(), a.dtype.scalar)

    def rounded_to_nearest(self, value, dtype):
        if (value.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast_impl(self, value, dtype)
        bits = torch.tensor(value.data).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(bits, tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_fma", rounded_once)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded_to_nearest)


@pytest.fixture
def launches(monkeypatch, request):
    """Return the names of the kernels that the modules in the test's KERNELS launch, a growing list."""
    names = []
    for name in request.module.KERNELS:
        module = importlib.import_module(f"dartsfast.kernels.{name}")

        def counted(kernel, grid, *args, launch=module.launch, **meta):
            names.append(kernel.fn.__name__)
            launch(kernel, grid, *args, **meta)

        monkeypatch.setattr(module, "launch", counted)
    return names
