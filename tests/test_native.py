"""The native extension: what happens without it, and which instruction set runs."""

import os
import subprocess
import sys

import pytest
import torch

from dartsfast.backends import availability, native, resolve_backend
from dartsfast.backends import triton as triton_backend
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError

PROGRAM = """
import warnings
import torch
from dartsfast.backends import candidates, resolve_backend
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
missing = candidates("cpu")[0]
print(resolve_backend("auto"), "|", missing.reason)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    net = Network(4, 10, 3, torch.nn.CrossEntropyLoss(), steps=2, multiplier=2)
print(heard[0].message)
print(net.backend, net(torch.randn(2, 3, 8, 8)).shape[1])
try:
    Network(4, 10, 3, torch.nn.CrossEntropyLoss(), backend="cpu")
except InputError as error:
    print(error)
"""


def without_extension(*command, **environment):
    """Run Python as on a machine where the package was installed without a compiler."""
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "DARTSFAST_LIBRARY": "/nowhere/_C.abi3.so", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_backend_serves_its_own_devices_only(monkeypatch):
    monkeypatch.setattr(triton_backend, "missing", lambda: None)
    monkeypatch.setattr(triton_backend, "DEVICES", ("cuda", "xpu"))
    assert resolve_backend("auto", "cuda:1") == resolve_backend("auto", "xpu") == "triton"
    with pytest.raises(
        InputError, match="'triton' is not available: its kernels take tensors on cuda or xpu"
    ):
        resolve_backend("triton", "cpu")
    network = Network(4, 10, 3, torch.nn.CrossEntropyLoss(), backend="triton")  # may move to a GPU yet
    with pytest.raises(InputError, match="not cpu"):
        network(torch.randn(2, 3, 8, 8))
    if availability("cpu").available:
        with pytest.raises(InputError, match="'cpu' is not available: its kernels take tensors on cpu"):
            resolve_backend("cpu", "cuda")


def test_without_the_extension_auto_falls_back_and_says_why():
    first, warning, second, third = without_extension("-c", PROGRAM).splitlines()
    assert first.startswith("reference | the native extension was not built: install a C++20 compiler")
    assert warning.startswith("backend cpu not used: the native extension was not built: install a C++20")
    assert second == "reference 10"
    assert "backend 'cpu' is not available: the native extension was not built" in third


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from dartsfast.backends import candidates, resolve_backend
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
torch.cuda.is_available = lambda: True
print(resolve_backend("auto", "cuda"), "|", candidates("cuda")[0].reason)
try:
    Network(4, 10, 3, torch.nn.CrossEntropyLoss(), backend="triton")
except InputError as error:
    print(error)
print(Network(4, 10, 3, torch.nn.CrossEntropyLoss(), steps=2, multiplier=2)(torch.randn(2, 3, 8, 8)).shape[1])
"""


def test_without_triton_auto_falls_back_and_says_why():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, timeout=120
    )
    first, second, third = result.stdout.splitlines()
    assert first.startswith("reference | Triton cannot be imported"), result.stderr
    assert "backend 'triton' is not available: Triton cannot be imported" in second
    assert third == "10"


def test_doctor_says_why_there_is_no_cpu_backend():
    assert "the native extension was not built" in without_extension("-m", "dartsfast", "doctor")


@pytest.mark.skipif(native.load() is not None, reason=str(native.load()))
def test_the_instruction_set_can_be_chosen():
    chosen = torch.ops.dartsfast.cpu_instruction_set()
    try:
        torch.ops.dartsfast.set_cpu_instruction_set("portable")
        assert torch.ops.dartsfast.cpu_instruction_set() == "portable"
        assert "portable" in availability("cpu").reason
        with pytest.raises(RuntimeError, match="'mmx' is not one of this processor's"):
            torch.ops.dartsfast.set_cpu_instruction_set("mmx")
    finally:
        torch.ops.dartsfast.set_cpu_instruction_set(chosen)


@pytest.mark.skipif(not availability("cpu").available, reason=availability("cpu").reason)
def test_large_memory_is_used_again():
    """The same size from the same place, a smaller one too, but not a piece of something far too large."""
    kernels, like = torch.ops.dartsfast, torch.zeros(1)
    kernels.empty_cache()
    large = kernels.empty(like, [1 << 22])  # 16 MB
    place = large.data_ptr()
    del large
    again = kernels.empty(like, [1 << 22])
    assert again.data_ptr() == place
    del again
    smaller = kernels.empty(like, [1 << 21])
    assert smaller.data_ptr() == place and smaller.shape == (1 << 21,)
    smaller.fill_(1.0)
    del smaller
    assert kernels.empty(like, [1 << 20]).data_ptr() != place


@pytest.mark.skipif(not availability("cpu").available, reason=availability("cpu").reason)
def test_a_large_block_stays_for_the_sake_of_a_small_one():
    kernels, like = torch.ops.dartsfast, torch.zeros(1)
    kernels.empty_cache()
    large = kernels.empty(like, [1 << 24])  # 64 MB
    large.fill_(1.0)
    del large
    small = kernels.empty(like, [1 << 18])
    assert kernels.empty(like, [1 << 24])[-1] == 1.0  # new pages are zeros
    del small


@pytest.mark.skipif(not availability("cpu").available, reason=availability("cpu").reason)
def test_memory_of_other_sizes_is_given_back():
    kernels, like = torch.ops.dartsfast, torch.zeros(1)
    kernels.empty_cache()
    blocks = [kernels.empty(like, [1 << 20]).fill_(1.0) for _ in range(4)]  # 4 x 4 MB
    del blocks
    kernels.empty(like, [1 << 22])  # 16 MB, as much as was in use
    again = [kernels.empty(like, [1 << 20]) for _ in range(4)]
    assert [block[-1].item() for block in again] == [0.0] * 4
