"""The benchmarks: that every suite runs, that its gate refuses what is wrong, and what results look like."""

import functools
import json

import pytest
import torch

from bench import cnn_step, memory, ops
from bench.__main__ import main
from bench.gate import disagreement
from bench.memory import peak_megabytes
from bench.op_cases import OURS, STOCK, Timed, pool_case
from bench.report import insert, markdown, read_results
from bench.suites import SUITES, Options, run_suite, save_result
from bench.timing import interleaved, spread
from dartsfast.backends import availability
from dartsfast.errors import InputError

needs_cpu = pytest.mark.skipif(not availability("cpu").available, reason=availability("cpu").reason)
TIMES = ("ms_p20", "ms_p50", "ms_p80")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny result of every suite."""
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("bench")
    measured = functools.cache(lambda peer: peak_megabytes(peer, 2, cnn_step.QUICK))
    with pytest.MonkeyPatch.context() as patch:
        # A process a peer instead of one a peer and order: most of its seconds are torch's import.
        patch.setattr(cnn_step, "peak_megabytes", lambda peer, order, size: measured(peer))
        for name in SUITES:
            save_result(run_suite(name, Options(threads=1, quick=True)), out)
    return out


@needs_cpu
def test_results_name_their_conditions(folder):
    for name in SUITES:
        result = json.loads((folder / f"{name}.json").read_text())
        assert result["suite"] == name
        assert set(result["header"]) == {
            "cpu", "cores", "threads", "instruction_set", "python", "torch", "commit", "date",
        }  # fmt: skip
        assert result["header"]["threads"] == 1
        assert result["header"]["torch"] == torch.__version__
        assert result["quick"] is True
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@needs_cpu
def test_ops_rows(folder):
    result = json.loads((folder / "ops.json").read_text())
    assert result["conditions"]["sgemm_gflops"] > 0 < result["conditions"]["copy_gbs"]
    rows = result["rows"]
    assert {row["op"] for row in rows} == {"alpha_softmax", "branch_conv", "pool3x3", "mixed_sum"}
    for row in rows:
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
    times = {(row["case"], row["pass"], row["peer"]): row for row in rows if row["op"] == "branch_conv"}
    case = "C=4, 8x8, 5x5, dilation 2"
    ours, stock = times[case, "forward", OURS], times[case, "forward", STOCK]
    # 2 images of 8x8 pixels: 25 taps and 4 input channels for each of 4 channels
    assert ours["gflops"] == pytest.approx(2 * 2 * 64 * 4 * (25 + 4) / ours["ms_p50"] / 1e6)
    assert ours["share_sgemm"] == pytest.approx(ours["gflops"] / result["conditions"]["sgemm_gflops"])
    assert stock["speedup"] == pytest.approx(stock["ms_p50"] / ours["ms_p50"])
    assert {name for _, name, _ in times} == {"forward", "backward", "input gradient"}


@needs_cpu
def test_step_rows(folder):
    rows = json.loads((folder / "cnn_step.json").read_text())["rows"]
    found = {(row["peer"], row["order"]): row for row in rows}
    assert set(found) == {(peer, order) for peer in cnn_step.QUICK_PEERS for order in (1, 2)}
    for row in rows:
        assert row["peak_mb"] > 0
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["speedup"] == found["reference", row["order"]]["ms_p50"] / row["ms_p50"]


@needs_cpu
def test_report_goes_between_the_markers(folder, tmp_path, capsys):
    readme = tmp_path / "README.md"
    pairs = [f"<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->" for name in SUITES]
    readme.write_text("before\n" + "\nmiddle\n".join(pairs) + "\nafter\n")
    for _ in range(2):  # a second time changes nothing
        assert main(["report", str(folder), "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith("before\n<!-- bench:ops -->\n| operator") and text.endswith("-->\nafter\n")
        assert "old" not in text and text.count("middle") == 1
        assert text.count("these are no figures") == len(SUITES)
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert f"torch {torch.__version__}" in capsys.readouterr().out
    readme.write_text("<!-- /bench:ops -->\n<!-- bench:ops -->\n")
    with pytest.raises(InputError, match="needs one line <!-- bench:ops -->"):
        insert(readme, read_results(folder))
    readme.write_text("nothing to fill in")
    with pytest.raises(InputError, match="has no line <!-- bench:SUITE -->"):
        insert(readme, read_results(folder))


def _off(timed):
    return Timed(timed.call, lambda out: [tensor + 1e-3 for tensor in timed.view(out)])


@needs_cpu
def test_a_wrong_operator_is_not_timed(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    wrong = pool_case(2, 4, 8)
    build = wrong.build

    def planted(dtype):
        passes = build(dtype)
        passes["backward"][OURS] = _off(passes["backward"][OURS])
        return passes

    wrong.build = planted
    monkeypatch.setattr(ops, "all_cases", lambda batch, quick: [wrong])
    assert main(["ops", "--quick", "--threads", "1", "--out", str(tmp_path)]) == 1
    (result,) = read_results(tmp_path)
    (row,) = result["rows"]
    assert "backward of dartsfast in float64: output 0 is off by 0.001" in row["refused"]
    assert not set(TIMES) & set(row)
    assert "not timed: backward" in markdown(result)


@needs_cpu
def test_a_wrong_network_is_not_timed(monkeypatch):
    right = cnn_step.Iteration.loss_and_gradients

    def planted(self):
        loss, alphas, weights = right(self)
        return [loss, alphas, weights * 1.001 if self.model.backend == "cpu" else weights]

    monkeypatch.setattr(cnn_step.Iteration, "loss_and_gradients", planted)
    monkeypatch.setattr(cnn_step, "_memory", lambda name, order, size: {"peak_mb": 1.0})
    result = run_suite("cnn_step", Options(threads=1, quick=True))
    refused = [row for row in result["rows"] if "refused" in row]
    assert [row["peer"] for row in refused] == ["cpu store"]
    assert "float64: output 2 is off" in refused[0]["refused"]
    assert {row["peer"] for row in result["rows"] if "ms_p50" in row} == {"reference"}
    assert "| cpu store | not timed: loss" in markdown(result)


@needs_cpu
def test_a_peer_that_fails_says_why(monkeypatch):
    def fails(self, order):
        if self.model.cells[0]._compiled_call_impl:
            raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(cnn_step.Iteration, "run", fails)
    figures = {1: {"peak_mb": 2.0}, 2: {"memory_error": "took too long"}}
    monkeypatch.setattr(cnn_step, "_memory", lambda name, order, size: figures[order])
    result = run_suite("cnn_step", Options(threads=1, quick=True, compile=True))
    failed = [row for row in result["rows"] if "failed" in row]
    assert [row["peer"] for row in failed] == ["reference compiled"] * 2
    assert [row["failed"] for row in failed] == ["no compiler", "took too long"]
    assert "| 1 | reference compiled | no compiler |  | 2 | 1.0 |" in markdown(result)
    assert "| 2 | reference compiled | took too long |  | took too long |  |" in markdown(result)


def test_memory_says_why_it_has_no_figure(monkeypatch):
    with pytest.raises(RuntimeError, match="KeyError: 'no peer'"):
        peak_megabytes("no peer", 1, cnn_step.QUICK)
    monkeypatch.setattr(memory, "LIMIT_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match="2 iterations took over 0.01 s"):
        peak_megabytes("reference", 1, cnn_step.QUICK)


def test_disagreement():
    truth = [torch.tensor([1.0, 100.0], dtype=torch.float64)]
    assert disagreement([torch.tensor([1.0, 100.01])], truth, 2e-4) is None
    assert "off by 0.01" in disagreement([torch.tensor([1.0, 100.01])], truth, 5e-5)
    assert "nan" in disagreement([torch.tensor([1.0, float("nan")])], truth, 1.0)
    assert "[3] instead of [2]" in disagreement([torch.ones(3)], truth, 1.0)
    assert "0 outputs instead of 1" in disagreement([], truth, 1.0)


def test_peers_take_turns():
    turns = []
    times = interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, 3)
    assert turns == ["a", "b"] * 4  # one to warm up
    assert set(times) == {"a", "b"} and set(times["a"]) == set(TIMES)
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == {"ms_p20": 1.8, "ms_p50": 3.0, "ms_p80": 4.2}


def test_list_and_bad_input(tmp_path, capsys):
    assert main(["--list"]) == 0
    assert "cnn_step" in capsys.readouterr().out
    for argv, message in (
        (["nothing"], "unknown suite 'nothing': choose from ops, cnn_step"),
        (["ops", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["report", str(tmp_path)], "no results in"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "ops.json").write_text("{}")
    with pytest.raises(InputError, match="is not a result"):
        read_results(tmp_path)
