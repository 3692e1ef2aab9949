"""The devices that benchmarks run on: the GPU's clock and memory on a stand-in for torch.cuda."""

from types import SimpleNamespace

import pytest
import torch

from bench import device
from bench.__main__ import main
from bench.device import CPU, CUDA, open_device
from bench.machine import header
from bench.options import Options
from bench.report import markdown
from bench.rnn_peers import PEERS, RNN
from bench.steps import _chosen
from bench.timing import interleaved
from dartsfast.errors import InputError


class GPU:
    """A GPU whose clock moves by what is run on it; ``log`` is the order of things."""

    def __init__(self):
        self.clock, self.log, self.allocated, self.peak = 0.0, [], 100_000_000, 0

    def run(self, seconds, megabytes=0):
        self.log.append("call")
        self.clock += seconds
        self.peak = max(self.peak, self.allocated + megabytes * 1_000_000)

    def event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace()

        def record():
            self.log.append("event")
            event.at = self.clock

        event.record = record
        event.elapsed_time = lambda after: 1e3 * (after.at - event.at)
        return event


@pytest.fixture
def gpu(monkeypatch):
    gpu = GPU()

    def flush(seconds=0.5):
        gpu.log.append("flush")
        gpu.clock += seconds

    def forget_peak():
        gpu.peak = gpu.allocated

    def empty(size, dtype, device):
        assert (size, dtype, str(device)) == (2 * 50_000_000, torch.int8, "cuda")
        return SimpleNamespace(zero_=flush)

    cuda = {
        "is_available": lambda: True,
        "get_device_properties": lambda place: SimpleNamespace(L2_cache_size=50_000_000),
        "get_device_name": lambda place: "Stand-in 80GB",
        "Event": gpu.event,
        "synchronize": lambda: gpu.log.append("synchronize"),
        "reset_peak_memory_stats": forget_peak,
        "memory_allocated": lambda: gpu.allocated,
        "max_memory_allocated": lambda: gpu.peak,
    }
    for name, stand_in in cuda.items():
        monkeypatch.setattr(device.torch.cuda, name, stand_in)
    monkeypatch.setattr(device.torch, "empty", empty)
    return gpu


def test_a_gpu_is_timed_by_events_after_a_flush(gpu):
    found = open_device("cuda")
    assert isinstance(found, CUDA)
    assert found.seconds(lambda: gpu.run(0.25), 2) == 0.5  # the flushes are not in it
    assert gpu.log == ["flush", "event", "call", "event"] * 2 + ["synchronize"]
    times = interleaved({"a": lambda: gpu.run(0.25)}, 3, found, sample_seconds=1.0)
    assert times["a"]["ms_p50"] == 250
    found.now()
    assert gpu.log[-1] == "synchronize"


def test_a_gpus_memory_is_what_was_allocated_above_idle(gpu):
    gpu.peak = 900_000_000  # of something before
    assert open_device("cuda").peak_megabytes(lambda: gpu.run(0.1, megabytes=30)) == 30


def test_a_result_of_a_gpu_names_it(gpu, monkeypatch):
    head = header(open_device("cuda"))
    assert head["device"] == "Stand-in 80GB" and "device" not in header(CPU())
    given = {"batch": 16, "repeats": 1, "sgemm_gflops": 1.0, "sgemm_avx2_gflops": None, "copy_gbs": 2.0}
    text = markdown({"suite": "ops", "quick": False, "header": head, "conditions": given, "rows": []})
    assert ". Stand-in 80GB, " in text and "AVX2 only not measured" in text


def test_a_device_has_its_own_peers(gpu):
    names = lambda name: set(_chosen(RNN, Options(), open_device(name)))  # noqa: E731
    assert names("cpu") == {"cpu store", "cpu recompute", "reference"}
    assert names("cuda") == {"triton store", "triton recompute", "reference"}
    assert names("cpu") | names("cuda") == set(PEERS)


def test_a_gpu_rounds_convolutions_as_the_kernels_do(gpu):
    before = torch.backends.cudnn.allow_tf32
    with open_device("cuda").exact():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_gpu_that_is_not_there_is_an_error_in_words(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["ops", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "bench: --device cuda: torch finds no GPU" in capsys.readouterr().err
    with pytest.raises(InputError, match="must be cpu or cuda, got 'tpu'"):
        open_device("tpu")
