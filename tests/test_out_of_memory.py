"""Runs whose memory does not suffice: they say what would do, and go on with it to the same bits."""

import re
import shlex

import pytest
import torch
from small_runs import OPTIONS, same

from dartsfast.backends import availability
from dartsfast.cli import main
from dartsfast.errors import InputError
from dartsfast.runs.device import ran_out
from dartsfast.search import CNNConfig, RNNConfig, search_cnn, search_rnn
from dartsfast.search.cnn import CNNSearch
from dartsfast.search.rnn import RNNSearch

cpu = availability("cpu")
needs_cpu = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


def out_of_memory_after(monkeypatch, search, iterations):
    """Let the memory of an iteration not suffice, once, when the alphas have moved."""
    run, done = search.iteration, []

    def limited(self, *args):
        found = run(self, *args)
        done.append(None)
        if len(done) == iterations:
            raise MemoryError("std::bad_alloc")
        return found

    monkeypatch.setattr(search, "iteration", limited)


def test_what_says_that_memory_ran_out():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**13)
    assert ran_out(caught.value) and ran_out(MemoryError()) and ran_out(torch.OutOfMemoryError())
    assert not ran_out(RuntimeError("shapes do not fit"))


@needs_cpu
def test_a_search_says_which_plan_fits_and_loses_nothing(tmp_path, monkeypatch):
    options = {**OPTIONS["cnn"](tmp_path), "backend": "cpu", "order": 2, "checkpoint_seconds": 0}
    search_cnn(CNNConfig(**options, out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        out_of_memory_after(patch, CNNSearch, 2)
        with pytest.raises(InputError, match="^out of memory in epoch 1, iteration 1; ") as caught:
            search_cnn(CNNConfig(**options, out=str(tmp_path / "run")))
    said = str(caught.value)
    assert re.search(r"What is free would do for this: store cells 0, 1, 2; peak [0-9.]+ [KM]B", said)
    words = shlex.split(said.split("Go on with: ")[1])
    assert words[-2] == "--memory"
    assert main([*words[1:-2], "--memory", "cell"]) == 0
    a, b = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "run"))
    assert b.pop("config")["memory"] == "cell" and a.pop("config")["memory"] == "store"
    same(a, b)


def test_others_say_what_they_can(tmp_path, monkeypatch):
    out_of_memory_after(monkeypatch, CNNSearch, 1)
    with pytest.raises(InputError, match=r"Checkpointing by cell takes the least.*--memory cell$"):
        search_cnn(CNNConfig(**OPTIONS["cnn"](tmp_path), backend="reference", out=str(tmp_path / "cnn")))
    out_of_memory_after(monkeypatch, RNNSearch, 1)
    with pytest.raises(InputError, match=r"time steps again takes the least.*--memory recompute$"):
        search_rnn(RNNConfig(**OPTIONS["rnn"](tmp_path), backend="reference", out=str(tmp_path / "rnn")))


@needs_cpu
def test_a_search_of_rnns_says_how_many_time_steps_fit(tmp_path, monkeypatch):
    out_of_memory_after(monkeypatch, RNNSearch, 1)
    said = r"What is free would do for this: keeps 40 of 40 time steps; .*Go on with: .* --memory \d+B$"
    with pytest.raises(InputError, match=said):
        search_rnn(RNNConfig(**OPTIONS["rnn"](tmp_path), backend="cpu", out=str(tmp_path / "rnn")))
