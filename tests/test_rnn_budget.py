"""The RNN's memory between all time steps kept and none: bits, plans, resident memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import OPTIONS, same
from test_fused_rnn import network, search, text

from dartsfast.backends import availability, pretending
from dartsfast.cli import main
from dartsfast.errors import InputError
from dartsfast.rnn import budget
from dartsfast.rnn.architect import Architect
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.search import RNNConfig, search_rnn

_cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not _cpu.available, reason=_cpu.reason)
TEXT = (5, 64)  # of which a time step is some blocks of the cache
SIZES = [300, 32, 32, 32]


def sized(memory, backend="cpu", sizes=SIZES):
    return RNNModelSearch(*sizes, backend=backend, memory=memory)


def peak(kept, order, backend="cpu"):
    """Return the peak of an iteration that keeps so many time steps, over all of its passes."""
    with pretending(backend), torch.device("meta"):
        model = sized("store", backend)
        model.rnns[0].memory = kept
        return max(p.peak + p.beside for p in budget.iteration(model, TEXT, order))


@pytest.mark.parametrize("order", [1, 2])
def test_any_number_of_time_steps_kept_gives_the_same_bits(order):
    wanted = search(network("cpu", torch.float32, H=40), 2, order)
    for kept in range(7):  # of 5
        model = network("cpu", torch.float32, H=40)
        model.rnns[0].memory = kept
        found = search(model, 2, order)
        assert all(torch.equal(found[name], value) for name, value in wanted.items()), kept


def test_the_second_order_counts_its_copies_of_the_weights():
    weights = 4 * sum(w.numel() for w in sized("store").parameters())
    # Beside the pass after the virtual step the weights to restore, in the difference also its vector.
    assert peak(0, 1) + weights <= peak(0, 2) <= peak(0, 1) + 2 * weights


def test_a_backward_leaves_what_is_kept_for_another():
    model, (x, y) = network("cpu", dropouts={}), text()
    model.rnns[0].memory = 2
    loss = model._loss(model.init_hidden(6), x, y)[0]
    once, again = (torch.autograd.grad(loss, model.parameters(), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize(("backend", "order"), [("cpu", 1), ("cpu", 2), ("cuda", 2), ("triton", 1)])
def test_as_many_time_steps_are_kept_as_fit(backend, order):
    peaks = [peak(kept, order, backend) for kept in range(TEXT[0] + 1)]
    prices = []
    for size in sorted({peaks[0], peaks[1] - 1, peaks[2], peaks[-1] - 1, 2 * max(peaks)}):
        with pretending(backend), torch.device("meta"):
            found = sized(f"{size}B", backend).fit_memory(TEXT, order)
        assert found.kept == max(kept for kept, p in enumerate(peaks) if p <= size)
        assert found.peak == peaks[found.kept] and found.least == peaks[0]
        prices.append(found.price)
    assert prices == sorted(prices, reverse=True) and prices[0] > 1.1 and prices[-1] == 1.0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read memory from")
def test_the_planned_peak_is_the_measured_one():
    shape, sizes = [10, 256], [4000, 128, 128, 128]
    script = Path(__file__).with_name("measured_peak.py")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path)}
    most = sized("1GB", sizes=sizes).fit_memory(shape)
    for kept, size in (0, most.least), (5, (most.least + most.peak) // 2), (10, most.peak):
        found = sized(f"{size}B", sizes=sizes).fit_memory(shape)
        assert found.kept == pytest.approx(kept, abs=1)
        command = [sys.executable, script]
        command.append(json.dumps(["rnn", shape, "both", {"sizes": sizes, "memory": f"{size}B"}]))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        assert found.peak == pytest.approx(int(done.stdout), rel=0.05)
        assert int(done.stdout) <= size


def test_planning_changes_nothing_of_the_model():
    model = sized("1GB")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    first = model.fit_memory(TEXT)
    assert torch.equal(random, torch.get_rng_state())
    assert all(t.requires_grad for t in (*model.parameters(), *model.arch_parameters()))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.encoder.weight is model.decoder.weight
    assert model.fit_memory((3, 64)) is first and model.new()._fits == [first]
    model(torch.zeros(6, 64, dtype=torch.int64), model.init_hidden(64))  # a pass plans by itself
    assert [fit.text for fit in model._fits] == [TEXT, (6, 64)] and model.rnns[0].memory == 6


def test_what_is_too_little_says_what_would_do():
    least = peak(0, 1)
    with pytest.raises(InputError, match=r"passes over texts \[5, 64\] take .*batches of \d+") as caught:
        sized(f"{int(0.8 * least)}B").fit_memory(TEXT)
    batch = int(str(caught.value).split("batches of ")[1].split()[0])
    fits = sized(f"{int(0.8 * least)}B")
    assert fits.fit_memory((5, batch)).peak <= 0.8 * least
    with pytest.raises(InputError, match="too little"):
        fits.fit_memory((5, batch + 1))
    with pytest.raises(InputError, match=r"of 1\.0 KB is too little.*or fewer columns, or shorter texts"):
        sized("1KB").fit_memory(TEXT)


def test_what_no_kernels_serve_has_no_plan():
    with pytest.raises(InputError, match="do not serve this cell: choose one of store, recompute"):
        sized("1GB", backend="reference").fit_memory(TEXT)
    altered = sized("1GB")
    altered.rnns[0].bn = torch.nn.BatchNorm1d(32)
    with pytest.raises(InputError, match="do not serve this cell"):
        altered.fit_memory(TEXT)
    with pytest.raises(InputError, match="memory='store' is no budget"):
        sized("store").fit_memory(TEXT)


def test_a_search_keeps_its_budget_and_its_bits(tmp_path, capsys):
    options = {**OPTIONS["rnn"](tmp_path), "backend": "cpu", "epochs": 1}
    search_rnn(RNNConfig(**options, out=str(tmp_path / "store")))
    capsys.readouterr()
    search_rnn(RNNConfig(**options, memory="0.6MB", out=str(tmp_path / "budget")))
    said = re.search(r"memory 0.6MB: keeps (\d+) of 40 time steps; peak 5\d\d", capsys.readouterr().out)
    assert 0 < int(said[1]) < 40
    a, b = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("store", "budget"))
    assert (a.pop("config")["memory"], b.pop("config")["memory"]) == ("store", "0.6MB")
    same(a, b)


def test_the_alphas_step_is_rid_of_the_weights_gradients(tmp_path, monkeypatch):
    seen, step = [], Architect.step

    def watched(self, *args):
        seen.append([p.grad for p in self.model.parameters()])
        return step(self, *args)

    monkeypatch.setattr(Architect, "step", watched)
    search_rnn(RNNConfig(**OPTIONS["rnn"](tmp_path), out=str(tmp_path / "run")))
    assert len(seen) > 1 and all(grad is None for grads in seen for grad in grads)


def test_the_command_explains_the_plan(capsys):
    small = ["--emsize", "32", "--nhid", "32", "--nhidlast", "32", "--bptt", "5", "--batch_size", "64"]
    command = ["explain", "rnn", *small, "--words", "300", "--backend", "cpu", "--order", "2"]
    middle = (peak(0, 2) + peak(5, 2)) // 2
    assert main([*command, "--memory", f"{middle}B"]) == 0
    said = capsys.readouterr().out
    kept = int(re.search(r"keeps (\d) of 5 time steps", said)[1])
    assert f" {peak(kept, 2) / 1e6:,.1f} " in said and "finite difference" in said
    assert main([*command, "--memory", "store"]) == 0
    assert "keeps" not in capsys.readouterr().out
    assert main([*command, "--words", "0"]) == 2
    assert main([*command, "--backend", "reference"]) == 2
