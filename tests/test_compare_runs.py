"""Runs side by side: what differs, on a terminal and as a page."""

import re
import shutil

import pytest
from read_page import Page
from small_runs import rnn_options

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.cli import main
from dartsfast.errors import InputError
from dartsfast.runs.comparison import compared, names, read_runs, write_comparison
from dartsfast.search import RNNConfig, search_rnn


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    options = rnn_options(base)
    changes = {"a/<x>": {}, "b/<x>": {"seed": 5, "lr": 3.0}, "c": {"epochs": 1}}
    return [
        search_rnn(RNNConfig(**{**options, **change}, out=str(base / name)))
        for name, change in changes.items()
    ]


def test_what_differs_and_only_that(runs):
    lines = dict(compared(read_runs([run.out for run in runs])))
    assert list(lines)[:3] == ["lr", "epochs", "seed"], "options first, as they are declared"
    assert (lines["lr"], lines["epochs"], lines["seed"]) == (
        ["20.0", "3.0", "20.0"],
        ["2", "2", "1"],
        ["3", "5", "3"],
    )
    assert lines["state"] == ["finished: 2 of 2 epochs"] * 2 + ["finished: 1 of 1 epochs"]
    assert lines["last valid_ppl"] == [f"{run.history[-1]['valid_ppl']:.6g}" for run in runs]
    best = [min((row["valid_ppl"], row["epoch"]) for row in run.history) for run in runs]
    assert lines["measure"] == [f"valid_ppl {value:.4g} in epoch {epoch}" for value, epoch in best]
    assert {"data", "batch_size", "bptt"}.isdisjoint(lines)


def test_short_names(runs):
    assert names(read_runs([run.out for run in runs])) == ["a/<x>", "b/<x>", "c"]
    inner = runs[0].out / "inner"
    shutil.copytree(runs[2].out, inner)
    assert names(read_runs([runs[0].out, inner])) == ["<x>", "<x>/inner"]
    shutil.rmtree(inner)


def test_on_a_terminal_and_as_a_page(runs, tmp_path, capsys):
    folders = [str(run.out) for run in runs]
    capsys.readouterr()
    assert main(["compare-runs", *folders, "--out", str(tmp_path / "new" / "both.html")]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("a/<x>", "b/<x>", "seed", "valid_ppl"))
    assert shown.endswith(f"{tmp_path / 'new' / 'both.html'}\n")
    text = (tmp_path / "new" / "both.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.references == [] and "<x>" not in text
    header, *rows = page.table("differences")
    assert header == ["", "a/<x>", "b/<x>", "c"]
    assert [tuple(row) for row in rows] == [(name, *values) for name, values in compared(read_runs(folders))]
    panels = re.findall(r'<svg class="curves".*?</svg>', text)
    assert len(panels) == 2 and all(panel.count("<polyline") == 6 for panel in panels)
    for style, run in zip(("run0", "run1", "run2"), runs, strict=True):
        marked = re.findall(rf'<circle class="point {style}"[^>]*><title>[^<]*: ([\d.e+]+)<', "".join(panels))
        assert marked == [f"{row[f'valid_{m}']:.5g}" for m in ("loss", "ppl") for row in run.history]
    pictures = re.findall(r'<svg class="cell".*?</svg>', text)
    for picture, run in zip(pictures, runs, strict=True):
        assert sorted(re.findall(r'<text class="op"[^>]*>([^<]+)<', picture)) == sorted(
            op for op, _ in run.genotype.recurrent
        )


def test_runs_of_other_commands_and_without_epochs(runs, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.toml").write_text('command = "train cnn"\n[options]\nepochs = 3\nlr = 20.0\n')
    lines = dict(compared(read_runs([runs[0].out, begun])))
    assert lines["command"] == ["search rnn", "train cnn"]
    assert (
        lines["bptt"] == ["40", "-"] and lines["measure"][1] == lines["cell"][1] == "-" and "lr" not in lines
    )
    assert "last valid_ppl" in lines and lines["last valid_ppl"][1] == "-"
    Page(
        write_comparison(read_runs([begun, runs[0].out]), tmp_path / "page.html").read_text(encoding="utf-8")
    )


def test_what_cannot_be_compared(runs, tmp_path, capsys):
    with pytest.raises(InputError, match="two runs or more"):
        read_runs([runs[0].out, runs[0].out / ".." / runs[0].out.name])
    assert main(["compare-runs", str(runs[0].out), str(tmp_path)]) == 2
    assert "there is no run in" in capsys.readouterr().err
