"""The optional choice of launch options: on a clock that stands in for a GPU's."""

import json

import pytest
import torch

pytest.importorskip("triton")

from dartsfast.kernels import autotune, launch  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402

from dartsfast.backends import triton as triton_backend  # noqa: E402 - what follows needs Triton
from dartsfast.errors import InputError  # noqa: E402

WARPS = [options["num_warps"] for options in autotune.WARPS]


class Clock:
    """Gives the times of a table by num_warps, and counts how often it is asked."""

    def __init__(self, *times):
        self.times, self.asked, self.ran = dict(zip(WARPS, times, strict=True)), 0, None

    def __call__(self, run):
        self.asked += 1
        run()
        return self.times[self.ran]

    def run(self, num_warps):
        self.ran = num_warps
        if self.times[num_warps] is None:
            raise OutOfResources(1, 0, "shared memory")


@pytest.mark.parametrize(
    ("times", "best"),
    [((3.0, 1.0, 2.0), 4), ((1.0, 1.0, 2.0), 2), ((None, 5.0, 4.0), 8), ((None, None, None), None)],
    ids=str,
)
def test_the_fastest_that_fits_is_chosen_once_and_kept(times, best, tmp_path):
    clock, wanted = Clock(*times), {} if best is None else {"num_warps": best}
    file = tmp_path / "new folder" / "choices.json"
    found = autotune.Tuner(file, clock)
    for _ in range(2):
        assert found.options("mixed_sum_kernel", "H100 16", clock.run) == wanted
    assert clock.asked == 3 and json.loads(file.read_text()) == {"mixed_sum_kernel H100 16": wanted}
    again = autotune.Tuner(file, clock)
    assert again.options("mixed_sum_kernel", "H100 16", clock.run) == wanted and clock.asked == 3
    again.options("mixed_sum_kernel", "H100 32", clock.run)
    assert clock.asked == 6


def test_processes_keep_each_others_choices(tmp_path):
    clock = Clock(1.0, 2.0, 3.0)
    first, second = (autotune.Tuner(tmp_path / "choices.json", clock) for _ in range(2))
    first.options("mixed_sum_kernel", "a", clock.run)
    second.options("mixed_sum_kernel", "b", clock.run)
    assert set(autotune.Tuner(first.path, clock).chosen) == {"mixed_sum_kernel a", "mixed_sum_kernel b"}
    assert [file.name for file in tmp_path.iterdir()] == ["choices.json"]


def test_kernels_whose_bits_or_memory_would_change_are_left_as_they_are(tmp_path):
    clock = Clock(3.0, 1.0, 2.0)
    found = autotune.Tuner(tmp_path / "choices.json", clock)
    for name in ("fd_virtual_step_kernel", "fd_perturb_kernel", "norm_stats_kernel", "moments_kernel"):
        assert found.options(name, "H100 16", clock.run) == {}
    assert clock.asked == 0 and not found.path.exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    file = tmp_path / "choices.json"
    for text in ("not JSON", "3"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"choices\.json is no cache of launch options .*: delete it"):
            autotune.Tuner(file, Clock(1.0, 1.0, 1.0))


def test_it_is_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv("DARTSFAST_AUTOTUNE", raising=False)
    autotune.tuner.cache_clear()
    assert autotune.tuner() is None and autotune.tuned(None, (1,), (), {}) == {}


def test_the_file_is_where_it_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DARTSFAST_AUTOTUNE_CACHE", raising=False)
    assert autotune.cache_path() == tmp_path / "dartsfast" / "autotune.json"
    monkeypatch.setenv("DARTSFAST_AUTOTUNE_CACHE", str(tmp_path / "mine.json"))
    assert autotune.cache_path() == tmp_path / "mine.json"


class Kernel:
    """Notes with what options it is launched."""

    __name__ = "mixed_sum_kernel"

    def __init__(self):
        self.launched = []

    def __getitem__(self, grid):
        return lambda *args, **meta: self.launched.append(meta["num_warps"])


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    """Returns a kernel whose fastest launch is that of 8 warps."""
    kernel = Kernel()
    found = autotune.Tuner(
        tmp_path / "choices.json", lambda run: [run(), {2: 3.0, 4: 2.0, 8: 1.0}[kernel.launched[-1]]][1]
    )
    monkeypatch.setattr(autotune, "tuner", lambda: found)
    module = type("Module", (), {"get_device_name": staticmethod(lambda device: "H100")})
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return kernel


def test_a_launch_takes_the_choice(tuning):
    for n in (16, 16, 32):
        launch.launch(tuning, (1,), torch.ones(n), n, num_warps=4)
    times = [2, 4, 8]
    assert tuning.launched == [*times, 8, 8, *times, 8]


def test_nothing_is_timed_while_a_graph_is_recorded(tuning, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    launch.launch(tuning, (1,), torch.ones(16), 16, num_warps=4)
    assert tuning.launched == [4]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    launch.launch(tuning, (1,), torch.ones(16), 16, num_warps=4)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    launch.launch(tuning, (1,), torch.ones(16), 16, num_warps=4)
    assert tuning.launched[4:] == [8, 8]


def test_a_choice_is_by_dtype_and_constants(tuning):
    keys = {
        autotune.described((torch.ones(2, dtype=dtype), (None, 3)), {"BP": block})
        for dtype in (torch.float32, torch.bfloat16)
        for block in (32, 64)
    }
    assert len(keys) == 4 and all(key.startswith("H100 ") for key in keys)


def test_every_kernel_that_may_be_tuned_exists():
    from dartsfast.kernels import branch_conv, branch_conv_backward, mixed_sum, pool3x3

    modules = branch_conv, branch_conv_backward, mixed_sum, pool3x3
    assert triton_backend.load() is None
    assert all(any(hasattr(module, name) for module in modules) for name in autotune.CHOICES)
