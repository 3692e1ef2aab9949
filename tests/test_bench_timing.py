"""How peers of a bench are timed in turn, and held to the truth."""

import torch

from bench.device import CPU
from bench.gate import disagreement
from bench.timing import in_seconds, interleaved, spread


def test_disagreement():
    truth = [torch.tensor([1.0, 100.0], dtype=torch.float64)]
    assert disagreement([torch.tensor([1.0, 100.01])], truth, 2e-4) is None
    assert "off by 0.01" in disagreement([torch.tensor([1.0, 100.01])], truth, 5e-5)
    assert "nan" in disagreement([torch.tensor([1.0, float("nan")])], truth, 1.0)
    assert "[3] instead of [2]" in disagreement([torch.ones(3)], truth, 1.0)
    assert "0 outputs instead of 1" in disagreement([], truth, 1.0)


def test_peers_take_turns():
    turns = []
    times = interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, 3, CPU())
    assert turns == ["a", "b"] * 4  # one to warm up
    assert set(times) == {"a", "b"} and set(times["a"]) == {"ms_p20", "ms_p50", "ms_p80"}
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == {"ms_p20": 1.8, "ms_p50": 3.0, "ms_p80": 4.2}


def test_a_spread_is_printed_in_seconds():
    row = {"ms_p20": 1234.0, "ms_p50": 2000.0, "ms_p80": 3456.0}
    assert in_seconds(row) == "2 (1.23-3.46)"
