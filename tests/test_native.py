"""The native extension: what happens without it, and which instruction set runs."""

import os
import random
import resource
import runpy
import subprocess
import sys
from pathlib import Path

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
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    print(resolve_backend("auto"), "|", missing.reason)
    net = Network(4, 10, 3, torch.nn.CrossEntropyLoss(), steps=2, multiplier=2)
print(*(warning.message for warning in heard))  # one, whoever asks
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
    assert warning.count("backend cpu not used") == 1
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


needs_cpu = pytest.mark.skipif(not availability("cpu").available, reason=availability("cpu").reason)
MB = 1 << 18  # elements of float32


@needs_cpu
def test_large_memory_is_used_again():
    kernels, like = torch.ops.dartsfast, torch.zeros(1)
    kernels.empty_cache()
    large = kernels.empty(like, [16 * MB])
    place = large.data_ptr()
    del large
    assert kernels.empty(like, [16 * MB]).data_ptr() == place


@needs_cpu
def test_memory_is_put_together_from_what_is_idle():
    """Pages move: what two blocks held is found in a third, and the rest of the second in a fourth."""
    kernels, like = torch.ops.dartsfast, torch.zeros(1)
    kernels.empty_cache()
    first, second = (kernels.empty(like, [n * MB]).fill_(n) for n in (6, 4))
    del first, second
    third = kernels.empty(like, [8 * MB])
    assert third[: 6 * MB].unique().tolist() == [6.0] and third[6 * MB :].unique().tolist() == [4.0]
    third.fill_(8.0)
    assert kernels.empty(like, [2 * MB]).unique().tolist() == [4.0]
    assert kernels.empty(like, [4 * MB]).unique().tolist() == [0.0, 4.0], "two megabytes more than there was"


@needs_cpu
def test_memory_of_any_sizes_stays_apart_and_within_the_most_in_use():
    torch.ops.dartsfast.empty_cache()
    hold_any_sizes(seed=1)  # what threads and the checks themselves take once
    torch.ops.dartsfast.empty_cache()
    before = resident()
    most = hold_any_sizes(seed=0)
    pages = 4096 * 400
    assert resident() - before < most * 17 / 16 + pages, (
        "what is rounded up to large pages is a sixteenth at most"
    )
    torch.ops.dartsfast.empty_cache()
    assert resident() - before < pages


def hold_any_sizes(seed):
    """Take and give back blocks up to 9 MB at random, look into each, and return the most bytes held."""
    draw, like = random.Random(seed), torch.zeros(1)
    live, used, most = [], 0, 0
    for number in range(1, 400):
        while live and (used > 64 * MB or draw.random() < 0.4):
            tag, tensor = live.pop(draw.randrange(len(live)))
            assert torch.aminmax(tensor) == (tag, tag)  # which takes no memory that would be counted
            used -= len(tensor)
            del tensor
        sizes = [draw.choice([MB // 3, 2 * MB, 5 * MB, 8 * MB, draw.randrange(MB // 4, 9 * MB)])]
        tensor = torch.ops.dartsfast.empty(like, sizes)
        live.append((number, tensor.fill_(number)))
        used += len(tensor)
        most = max(most, used)
    return tensor.element_size() * most


def resident():
    """Return the bytes of this process's memory that are resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_build_finds_its_headers_from_anywhere(monkeypatch):
    """Older setuptools run this file as ``setup.py``, and the compiler runs in another folder."""
    pytest.importorskip("setuptools")
    monkeypatch.chdir(Path(__file__).parents[1])
    assert runpy.run_path("setup.py")["ROOT"] == Path.cwd()
