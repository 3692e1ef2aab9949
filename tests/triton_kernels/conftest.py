"""Fixtures for tests of the Triton kernels."""

import importlib

import pytest
import torch

from dartsfast.backends import triton as triton_backend


@pytest.fixture(autouse=True)
def no_selfcheck(monkeypatch):
    """Leave out the check before an operator's first use: tests count launches."""
    monkeypatch.setenv("DARTSFAST_SELFCHECK", "0")


@pytest.fixture(autouse=True)
def spared():
    """Spare the interpreter what it computes in vain."""
    if not triton_backend.INTERPRETED:
        yield
        return
    from mended import spared

    with spared():
        yield


@pytest.fixture
def exact():
    """Round as devices do, which Triton's interpreter does not everywhere."""
    if not triton_backend.INTERPRETED:
        yield
        return
    from mended import mended

    with mended():
        yield


@pytest.fixture
def poisoned():
    """Fill all memory that torch allocates with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


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
