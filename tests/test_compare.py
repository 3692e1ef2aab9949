"""``dartsfast compare``: distances of floats, and two backends side by side."""

import json
import math

import pytest
import torch

from dartsfast import tables
from dartsfast.backends import availability
from dartsfast.cli import main
from dartsfast.compare import (
    CompareConfig,
    CompareRNNConfig,
    cnn,
    compare_cnn,
    compare_rnn,
    distance,
    print_comparison,
    rnn,
)
from dartsfast.errors import InputError

TINY = {"batch_size": 2, "init_channels": 4, "layers": 3, "iterations": 2}
TINY_RNN = {"batch_size": 4, "nhid": 8, "bptt": 3, "vocabulary": 20, "iterations": 2}
needs_cpu = pytest.mark.skipif(not availability("cpu").available, reason=availability("cpu").reason)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only wait for a second thread, for minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ulp_distance_counts_floats(dtype):
    x = torch.tensor([1.0, -1.0, 0.0, 3e-300 if dtype == torch.float64 else 1e-44], dtype=dtype)
    up = x
    for n in range(1, 4):
        up = torch.nextafter(up, torch.full_like(up, math.inf))
        assert distance(x, up).ulp == n
        assert distance(up, x).ulp == n


def test_distance_across_zero_and_over_the_whole_range():
    tiny = torch.nextafter(torch.zeros(1), torch.ones(1))
    assert distance(tiny, -tiny).ulp == 2
    zeros = distance(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert (zeros.equal, zeros.ulp, zeros.relative_error) == (0.0, 0, 0.0)
    largest = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)
    assert distance(largest, -largest).ulp == 2 * 0x7FEFFFFFFFFFFFFF
    mixed = distance([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])])
    assert (mixed.equal, mixed.relative_error) == (0.5, pytest.approx(0.1))
    with pytest.raises(InputError, match="cannot compare"):
        distance(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("order", [1, 2])
def test_the_reference_is_equal_to_itself(order):
    result = compare_cnn(CompareConfig(("reference", "reference"), order=order, **TINY))
    assert [row["name"] for row in result["parts"]] == [
        "stem", "mixing weights, normal", "mixing weights, reduce",
        "cell 0", "cell 1", "cell 2", "pooling", "logits",
    ]  # fmt: skip
    assert len(result["iterations"]) == 2 * 3
    for row in [*result["parts"], *result["iterations"]]:
        assert (row["equal"], row["ulp"], row["relative_error"]) == (1.0, 0, 0.0)
    assert result["first_divergence"] == {"part": None, "iteration": None}
    assert result["genotypes"]["agree"]


def test_a_planted_difference_is_found_where_it_is(monkeypatch):
    network = cnn._network
    built = []

    def planted(config, backend):
        model = network(config, backend)
        built.append(model)
        if len(built) == 2:  # the second network of the first forward
            with torch.no_grad():
                model.cells[1].preprocess1.op[1].weight[0, 0] *= 1 + 1e-6
        return model

    monkeypatch.setattr(cnn, "_network", planted)
    result = compare_cnn(CompareConfig(("reference", "reference"), **TINY))
    assert result["first_divergence"] == {"part": "cell 1", "iteration": None}


@needs_cpu
def test_the_cpu_backend_agrees_in_float64():
    result = compare_cnn(CompareConfig(("reference", "cpu"), dtype="float64", **TINY))
    assert result["conditions"]["backends"] == ["reference", "cpu"]
    alphas = [row for row in result["iterations"] if row["quantity"] == "alphas"]
    assert len(alphas) == 2
    assert all(0 < row["relative_error"] < 1e-9 for row in alphas), alphas
    assert all(row["relative_error"] < 1e-9 for row in result["parts"])
    assert result["genotypes"]["agree"]


@pytest.mark.parametrize("order", [1, 2])
def test_the_recurrent_reference_is_equal_to_itself(order):
    # dropout: both must draw the same masks, in the parts too
    config = CompareRNNConfig(("reference", "reference"), order=order, dropout=0.5, **TINY_RNN)
    result = compare_rnn(config)
    weights = ["encoder.weight", "rnns.0._W0", *(f"rnns.0._Ws.{i}" for i in range(8)), "decoder.bias"]
    assert [row["name"] for row in result["parts"]] == [
        "embedding", "state 1", "state 2", "state 3", "log-probabilities", "loss",
        *(f"gradient of {name}" for name in ("alphas", *weights)),
    ]  # fmt: skip
    assert len(result["iterations"]) == 2 * 3
    for row in [*result["parts"], *result["iterations"]]:
        assert (row["equal"], row["ulp"], row["relative_error"]) == (1.0, 0, 0.0)
    assert result["first_divergence"] == {"part": None, "iteration": None}
    assert result["genotypes"]["agree"]
    assert set(result["genotypes"]["first"]) == {"recurrent", "concat"}


def _nudge_embedding(model):
    model.encoder.weight[rnn._batch(CompareRNNConfig(**TINY_RNN), 0)[0][0, 0], 0] *= 1 + 1e-6


def _nudge_cell(model):
    model.rnns[0]._Ws[3][0, 0] *= 1 + 1e-6


def _nudge_decoder(model):
    model.decoder.bias[0] += 1e-3


@pytest.mark.parametrize(
    ("nudge", "differ", "equal"),
    [
        (_nudge_embedding, {"embedding", "log-probabilities", "loss"}, {"state 1"}),
        (_nudge_cell, {"state 2", "loss", "gradient of alphas"}, {"embedding", "log-probabilities"}),
        (_nudge_decoder, {"log-probabilities", "loss"}, {"embedding", "state 3"}),
    ],
)
def test_a_difference_in_the_recurrent_network_is_found_where_it_is(monkeypatch, nudge, differ, equal):
    model_of = rnn._model
    built = []

    def planted(config, backend):
        model = model_of(config, backend)
        built.append(model)
        if len(built) == 2:  # the second model of the first pass
            with torch.no_grad():
                nudge(model)
        return model

    monkeypatch.setattr(rnn, "_model", planted)
    config = CompareRNNConfig(("reference", "reference"), dtype="float64", **TINY_RNN)
    result = compare_rnn(config)
    rows = {row["name"]: row for row in result["parts"]}
    assert all(rows[name]["equal"] < 1 for name in differ)
    assert all(rows[name]["equal"] == 1 for name in equal)
    assert result["first_divergence"]["iteration"] is None


def test_the_recurrent_data_is_a_text_and_hidden_states_go_on():
    config = CompareRNNConfig(("reference", "reference"), **TINY_RNN)
    x, y = rnn._batch(config, 1)
    assert x.shape == y.shape == (3, 4) and torch.equal(x[1:], y[:-1])
    run = rnn._Run(config, "reference")
    run.iterate(rnn._batch(config, 1), rnn._batch(config, 2))
    for hidden in (run.hidden, run.hidden_valid):
        assert hidden[0].abs().sum() > 0 and not hidden[0].requires_grad


@pytest.mark.skipif(not availability("cpu").available, reason=availability("cpu").reason)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_cpu_backend_agrees_on_the_recurrent_network_in_float64(dropout):
    result = compare_rnn(CompareRNNConfig(dtype="float64", dropout=dropout, **TINY_RNN))
    assert result["conditions"]["backends"] == ["reference", "cpu"]
    assert all(row["relative_error"] < 1e-9 for row in [*result["parts"], *result["iterations"]])
    assert result["genotypes"]["agree"]


@pytest.mark.parametrize(
    ("kind", "size", "words"),
    [("cnn", TINY, ("random images", "cell 1")), ("rnn", TINY_RNN, ("random tokens", "state 3"))],
)
def test_command_writes_its_files(tmp_path, capsys, kind, size, words):
    pytest.importorskip("matplotlib")
    options = [word for name, value in size.items() for word in (f"--{name}", str(value))]
    out = tmp_path / "compared"
    argv = ["compare", kind, "--backends", "reference", "reference", *options, "--out", str(out)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    for word in ("reference against reference", *words, "alphas", "agree"):
        assert word in text
    assert sorted(file.name for file in out.iterdir()) == ["compare.json", "compare.png", "compare.svg"]
    assert json.loads((out / "compare.json").read_text())["conditions"]["iterations"] == 2
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_plain_text_without_rich(monkeypatch, capsys):
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    row = {"equal": 0.99999, "ulp": 12345, "relative_error": 1e-7}
    print_comparison(
        {
            "conditions": {**vars(CompareConfig()), "size": "small", "data": "none", "threads": 1},
            "parts": [{"name": "stem", **row}],
            "iterations": [{"iteration": 1, "quantity": "loss", "values": [1.0, 2.0], **row}],
            "first_divergence": {"part": "stem", "iteration": 1},
            "genotypes": {"agree": False},
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert "stem  99.99 %     12,345       1.00e-07" in lines
    assert lines[-1].endswith("DIFFER")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backends": ("reference", "triton")}, "backend 'triton' is not available"),
        ({"backends": ("reference", "tpu")}, "unknown backend 'tpu'"),
        ({"backends": ("reference",)}, "two backends"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"order": 3}, "order must be one of 1, 2, got 3"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        compare_cnn(CompareConfig(**{"backends": ("reference", "reference"), **TINY, **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backends": ("reference", "triton")}, "backend 'triton' is not available"),
        ({"batch_size": 1}, "batch_size must be at least 2 for the cell's batch norm, got 1"),
        ({"bptt": 0}, "bptt must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, got 1.0"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64"),
    ],
)
def test_bad_input_for_the_recurrent_network_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        compare_rnn(CompareRNNConfig(**{"backends": ("reference", "reference"), **TINY_RNN, **change}))
