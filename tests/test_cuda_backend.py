"""Whether the kernels for CUDA in C++ serve, and what is said where they do not; none runs here."""

import pytest
import torch

from dartsfast.backends import availability, candidates, check_storage, cuda, triton
from dartsfast.errors import InputError
from dartsfast.fused.forward import Setting


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Let a library seem to be built and a GPU be at hand; what is loaded is noted."""
    library, loaded = tmp_path / "_cuda.abi3.so", []
    library.touch()
    monkeypatch.setattr(cuda, "LIBRARY", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.delenv("DARTSFAST_BACKEND", raising=False)
    cuda.load.cache_clear()
    yield loaded
    cuda.load.cache_clear()


def setting(device):
    return Setting(((1, 2, 2, 3),) * 2, (2, 8), torch.float32, torch.device(device), "store", None, True)


def test_where_it_is_built_it_serves(built):
    assert cuda.load() is None and built == [cuda.LIBRARY]
    assert availability("cuda", "cuda").available and not availability("cuda", "cpu").available
    assert candidates("cuda")[0] == availability("cuda", "cuda")
    assert setting("cuda").runner == "cuda" and not availability("triton", "cuda").available
    assert "serve this process" in availability("triton", "cuda").reason
    assert check_storage(torch.bfloat16, "cuda") == torch.bfloat16


def test_triton_can_be_asked_for(built, monkeypatch):
    monkeypatch.setenv("DARTSFAST_BACKEND", "triton")
    assert availability("cuda", "cuda").reason == "DARTSFAST_BACKEND=triton is set"
    assert setting("cuda").runner != "cuda" and not built
    monkeypatch.setattr(triton, "load", lambda: None)
    assert availability("triton", "cuda").available


def test_what_is_missing_is_said(built, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert availability("cuda").reason == "no NVIDIA GPU is at hand"
    cuda.load.cache_clear()
    monkeypatch.setattr(cuda, "LIBRARY", cuda.LIBRARY.with_name("nothing"))
    assert "DARTSFAST_BUILD=cuda" in availability("cuda").reason
    assert "cuda" not in [found.backend for found in candidates("cuda")]  # so that auto says nothing of it
    monkeypatch.setenv("DARTSFAST_BACKEND", "cuda")
    cuda.load.cache_clear()
    with pytest.raises(InputError, match="DARTSFAST_BACKEND=cuda cannot be had: its kernels were not built"):
        cuda.load()


def test_a_library_that_does_not_load_is_said(built, monkeypatch):
    def refuse(library):
        raise OSError("undefined symbol")

    monkeypatch.setattr(torch.ops, "load_library", refuse)
    assert availability("cuda", "cuda").reason == "the library does not load: undefined symbol"


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setenv("DARTSFAST_BACKEND", "metal")
    cuda.load.cache_clear()
    with pytest.raises(InputError, match="one of cuda, triton, got 'metal'"):
        cuda.load()
    cuda.load.cache_clear()
