"""The benchmarks: that every suite runs, that its gate refuses what is wrong, and what results look like."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import pytest
import torch

from bench import cnn_step, descendants, floor, gemm, hvp, memory, model, ops, steps, train_step
from bench.__main__ import main
from bench.cnn_peers import CNN
from bench.device import CPU
from bench.memory import peak_megabytes
from bench.op_cases import OURS, STOCK, Timed, all_cases, pool_case
from bench.op_cases.vectors import WEIGHTS
from bench.peers import REFERENCE, Iteration, Peer
from bench.report import insert, markdown, read_results
from bench.rnn_peers import PEERS, RNN, RNNIteration
from bench.suites import SUITES, Options, run_suite, save_result
from bench.workloads import MEASURED, WORKLOADS
from dartsfast.backends import availability, resolve_backend
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
from dartsfast.rnn.model_search import RNNModelSearch

needs_cpu = pytest.mark.skipif(not availability("cpu").available, reason=availability("cpu").reason)
OPERATORS = {
    "alpha_softmax",
    "branch_conv",
    "cross_entropy_",
    "pool3x3",
    "mixed_sum",
    "norm_stats",
    "rnn_node",
    "fd_hvp",
    "gemm_",
    "locked_linear_",
}
TIMES = ("ms_p20", "ms_p50", "ms_p80")
ONE_CELL = dataclasses.replace(CNN, quick=dataclasses.replace(CNN.quick, layers=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny result of every suite."""
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("bench")

    @functools.cache
    def measured(network, peer):
        return peak_megabytes(network, peer, 2, MEASURED[network].quick, "cpu")

    with pytest.MonkeyPatch.context() as patch:
        # A process a peer instead of one a peer and order: most of its seconds are torch's import.
        patch.setattr(
            steps, "peak_megabytes", lambda network, peer, order, size, device: measured(network, peer)
        )
        # Counting goes by operators: one cell, where test_bench_model.py counts those of both kinds.
        patch.setattr(model, "WORKLOADS", {**WORKLOADS, "cnn": ONE_CELL})
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
    assert {row["op"] for row in rows} == OPERATORS
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
    node, *_ = (row for row in rows if row["op"] == "rnn_node" and row["peer"] == OURS)
    # 3 predecessors of 4x6: gates of twice the size and states read, the node written
    assert node["gbs"] == pytest.approx(4 * 4 * 6 * (3 * 3 + 1) / node["ms_p50"] / 1e6)
    passes = {row["pass"]: row for row in rows if row["op"] == "fd_hvp" and row["peer"] == OURS}
    for name, vectors in (("norm", 1), ("perturb", 3), ("virtual step", 4), ("quotient", 3)):
        assert passes[name]["gbs"] == pytest.approx(4 * 500 * vectors / passes[name]["ms_p50"] / 1e6)


def test_vectors_are_as_long_as_the_weights_of_the_searches():
    with torch.device("meta"):
        cnn = Network(16, 10, 8, None, backend="reference")
        rnn = RNNModelSearch(10_000, 300, 300, 300, backend="reference")
    for name, network in (("CNN", cnn), ("RNN", rnn)):
        assert WEIGHTS[name] == sum(w.numel() for w in network.parameters())


@needs_cpu
@pytest.mark.parametrize("suite", ["cnn_step", "rnn_step"])
def test_step_rows(folder, suite):
    rows = json.loads((folder / f"{suite}.json").read_text())["rows"]
    found = {(row["peer"], row["order"]): row for row in rows}
    assert set(found) == {(peer, order) for peer in ("cpu store", REFERENCE) for order in (1, 2)}
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
        assert "old" not in text and text.count("middle") == len(SUITES) - 1
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


@needs_cpu
@pytest.mark.parametrize("case", all_cases(2, quick=True), ids=lambda case: f"{case.op}, {case.label}")
def test_every_case_passes_its_gate(case):
    assert ops.refusal(case, CPU()) is None


def _off(timed):
    return Timed(timed.call, lambda out: [tensor + 1e-3 for tensor in timed.view(out)])


@needs_cpu
def test_a_wrong_operator_is_not_timed(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    wrong = pool_case(2, 4, 8)
    build = wrong.build

    def planted(dtype, device):
        passes = build(dtype, device)
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
    right = Iteration.loss_and_gradients

    def planted(self):
        loss, alphas, weights = right(self)
        return [loss, alphas, weights * 1.001 if self.model.backend == "cpu" else weights]

    monkeypatch.setattr(cnn_step, "CNN", ONE_CELL)
    monkeypatch.setattr(Iteration, "loss_and_gradients", planted)
    monkeypatch.setattr(steps, "_memory", lambda *args: {"peak_mb": 1.0})
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

    monkeypatch.setattr(cnn_step, "CNN", ONE_CELL)
    monkeypatch.setattr(Iteration, "run", fails)
    figures = {1: {"peak_mb": 2.0}, 2: {"memory_error": "took too long"}}
    monkeypatch.setattr(steps, "_memory", lambda workload, name, order, *args: figures[order])
    result = run_suite("cnn_step", Options(threads=1, quick=True, compile=True))
    failed = [row for row in result["rows"] if "failed" in row]
    assert [row["peer"] for row in failed] == ["reference compiled"] * 2
    assert [row["failed"] for row in failed] == ["no compiler", "took too long"]
    below = [f"{row['floor_s']:.3g}" for row in failed]
    assert f"| 1 | reference compiled | no compiler |  | {below[0]} |  | 2 | 1.0 |" in markdown(result)
    assert f"| 2 | reference compiled | took too long |  | {below[1]} |  | took too long |  |" in markdown(
        result
    )


def test_memory_says_why_it_has_no_figure(monkeypatch):
    with pytest.raises(RuntimeError, match="KeyError: 'no peer'"):
        peak_megabytes("cnn", "no peer", 1, CNN.quick, "cpu")
    monkeypatch.setattr(memory, "LIMIT_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match="2 iterations took over 0.01 s"):
        peak_megabytes("rnn", "reference", 1, RNN.quick, "cpu")


@needs_cpu
def test_floor_and_share_stand_beside_the_time(folder):
    result = json.loads((folder / "rnn_step.json").read_text())
    given, size = result["conditions"], RNN.quick
    assert given["gflop"] == [gemm.flops(size, order) / 1e9 for order in (1, 2)]
    for row in result["rows"]:
        gflop, rate = given["gflop"][row["order"] - 1], given["sgemm_gflops"][row["order"] - 1]
        assert row["floor_s"] == pytest.approx(gflop / rate)
        assert row["share_floor"] == pytest.approx(1e3 * row["floor_s"] / row["ms_p50"])
    assert "| GEMM floor, s | share reached |" in markdown(result)


@needs_cpu
def test_the_cnns_floor_stands_beside_its_time(folder):
    result = json.loads((folder / "cnn_step.json").read_text())
    given, size = result["conditions"], CNN.quick
    for row in result["rows"]:
        ms = given["floor_ms"][str(row["order"])]
        assert row["floor_s"] == pytest.approx(floor.seconds(size, row["order"], CPU(), ms))
        assert row["share_floor"] == pytest.approx(1e3 * row["floor_s"] / row["ms_p50"])
    for order, flops, bandwidth in zip("12", given["sgemm_gflops"], given["copy_gbs"], strict=True):
        ms = given["floor_ms"][order]
        assert flops == pytest.approx(floor.PRODUCTS * 2 * 1024**3 / ms["sgemm"] / 1e6)
        assert bandwidth == pytest.approx(floor.COPIES * 2 * 4 * 2**26 / ms["copy"] / 1e6)
    assert "| floor, s | share reached |" in markdown(result)
    del given["copy_gbs"]  # as before there was a floor
    assert "floor is" not in markdown(result)


@pytest.mark.parametrize(("loss", "output"), [("train_loss", 0), ("weight_loss", 3)])
def test_the_gate_sees_each_loss_of_the_rnn(loss, output):
    assert steps.refusal(RNN, Peer("reference", memory="recompute"), CPU()) is None
    built = []

    def second_is_wrong(*args):
        built.append(RNNIteration(*args))
        if len(built) == 2:  # the first is the truth
            right = getattr(built[1], loss)
            setattr(built[1], loss, lambda: 1.001 * right())
        return built[-1]

    workload = dataclasses.replace(RNN, iteration=second_is_wrong)
    assert f"in float64: output {output} is off" in steps.refusal(workload, Peer("reference"), CPU())


@needs_cpu
def test_descendants_rows(folder):
    rows = json.loads((folder / "descendants.json").read_text())["rows"]
    assert {(row["network"], row["peer"]) for row in rows} == {
        ("sums of all", "stock"), ("sums of all", "accelerated"), ("sums of all", "dartsfast.cnn"),
        ("partial channels", "stock"), ("partial channels", "accelerated"),
        ("dense cells", "stock"), ("dense cells", "accelerated"),
    }  # fmt: skip
    assert all(row["speedup"] > 0 for row in rows)


def test_an_accelerated_network_that_is_wrong_is_not_timed(monkeypatch):
    right = descendants.Pass.loss_and_gradients

    def planted(self):
        loss, g = right(self)
        return [loss, g * (1 + 1e-6)] if "forward" in self.model.cells[0].pre1.__dict__ else [loss, g]

    monkeypatch.setattr(descendants.Pass, "loss_and_gradients", planted)
    assert "gradients in float64" in descendants.refusal("sums of all", torch.device("cpu"))


def test_train_step_rows(folder):
    rows = json.loads((folder / "train_step.json").read_text())["rows"]
    found = {row["peer"]: row for row in rows}
    assert list(found) == ["stock", "channels_last", "channels_last bf16"]
    for row in rows:
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["speedup"] == found["stock"]["ms_p50"] / row["ms_p50"]
        assert row["images_s"] == pytest.approx(1e3 * train_step.QUICK.batch / row["ms_p50"])


def test_a_wrong_training_is_not_timed(monkeypatch):
    right = train_step.Step.loss_and_gradients

    def planted(self):
        loss, weights = right(self)
        return [loss, weights * 1.001 if self.peer.channels_last else weights]

    monkeypatch.setattr(train_step.Step, "loss_and_gradients", planted)
    result = run_suite("train_step", Options(threads=1, quick=True))
    refused = {row["peer"]: row["refused"] for row in result["rows"] if "refused" in row}
    assert set(refused) == {"channels_last", "channels_last bf16"}
    assert all("float64: output 1 is off" in reason for reason in refused.values())
    assert "| channels_last | not timed: loss" in markdown(result)


@needs_cpu
def test_hvp_rows(folder):
    result = json.loads((folder / "hvp.json").read_text())
    found = {(row["network"], row["peer"]): row for row in result["rows"]}
    assert set(found) == {(network, peer) for network in ("cnn", "rnn") for peer in (hvp.OURS, hvp.PLAIN)}
    for (network, _), row in found.items():
        assert row["backend"] == resolve_backend("auto")
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["share"] == row["ms_p50"] / row["iteration_ms"]
        assert row["speedup"] == found[network, hvp.PLAIN]["ms_p50"] / row["ms_p50"]
        assert row["passes_ms"] > 0
    assert f"| cnn, cpu | {hvp.OURS} |" in markdown(result)


def test_passes_are_told_from_the_vector_work():
    clock = [0.0]

    def takes(seconds):
        clock[0] += seconds

    alphas = [torch.ones(2, requires_grad=True) for _ in range(2)]

    def forward():
        takes(10.0)
        product = alphas[0] * alphas[1]
        product.register_hook(lambda grad: takes(100.0))
        return product.sum()

    def product(loss_fn, weights, vector, wrt):
        for _ in range(2):
            takes(1.0)
            torch.autograd.grad(loss_fn(), wrt)
        takes(0.5)

    device = SimpleNamespace(now=lambda: clock[0])
    assert hvp.split(product, SimpleNamespace(train_loss=forward), [], [], alphas, device) == (220.0, 2.5)
    assert not any(alpha._backward_hooks for alpha in alphas)


def test_a_wrong_product_is_not_timed(monkeypatch, capsys):
    right = hvp.PRODUCTS[hvp.OURS]
    monkeypatch.setitem(hvp.PRODUCTS, hvp.OURS, lambda *args: [p * (1 + 1e-6) for p in right(*args)])
    monkeypatch.setattr(hvp, "WORKLOADS", {"rnn": RNN})
    rows = hvp.run(Options(quick=True))["rows"]
    assert [row["peer"] for row in rows] == [hvp.OURS, hvp.PLAIN]
    assert "product in float64: output 0 is off" in rows[0]["refused"] and not set(TIMES) & set(rows[0])
    assert rows[1]["ms_p50"] > 0


def test_the_plain_product_puts_the_weights_back():
    iteration = RNNIteration(PEERS[REFERENCE], RNN.gate, torch.float64)
    weights = list(iteration.model.parameters())
    before = [w.detach().clone() for w in weights]
    hvp.per_tensor(iteration.train_loss, weights, before, iteration.model.arch_parameters())
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_list_and_bad_input(tmp_path, capsys):
    assert main(["--list"]) == 0
    assert "cnn_step" in capsys.readouterr().out
    for argv, message in (
        (
            ["nothing"],
            "unknown suite 'nothing': choose from ops, cnn_step, memory, rnn_step, train_step, descendants",
        ),
        (["ops", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["rnn_step", "--batch", "1"], "batch norm needs a batch of at least 2, got 1"),
        (["report", str(tmp_path)], "no results in"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "ops.json").write_text("{}")
    with pytest.raises(InputError, match="is not a result"):
        read_results(tmp_path)
