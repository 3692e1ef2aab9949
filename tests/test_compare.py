"""``dartsfast compare``: distances of floats, and two backends side by side."""

import json
import math

import pytest
import torch

from dartsfast import compare
from dartsfast.backends import availability
from dartsfast.cli import main
from dartsfast.compare import CompareConfig, compare_cnn, distance
from dartsfast.errors import InputError

TINY = {"batch_size": 2, "init_channels": 4, "layers": 3, "iterations": 2}
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
    network = compare._network
    built = []

    def planted(config, backend):
        model = network(config, backend)
        built.append(model)
        if len(built) == 2:  # the second network of the first forward
            with torch.no_grad():
                model.cells[1].preprocess1.op[1].weight[0, 0] *= 1 + 1e-6
        return model

    monkeypatch.setattr(compare, "_network", planted)
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


def test_command_writes_its_files(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    out = tmp_path / "compared"
    argv = ["compare", "cnn", "--backends", "reference", "reference", *options, "--out", str(out)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    for words in ("reference against reference", "random images", "cell 1", "alphas", "agree"):
        assert words in text
    assert sorted(file.name for file in out.iterdir()) == ["compare.json", "compare.png", "compare.svg"]
    assert json.loads((out / "compare.json").read_text())["conditions"]["iterations"] == 2
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_plain_text_without_rich(monkeypatch, capsys):
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    row = {"equal": 0.99999, "ulp": 12345, "relative_error": 1e-7}
    compare.print_comparison(
        {
            "conditions": {**vars(CompareConfig()), "data": "none", "threads": 1},
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
