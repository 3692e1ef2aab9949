"""What runs leave of their options, and the table of runs."""

import json

import pytest
import torch
from small_runs import cnn_options, rnn_options

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.cli import main
from dartsfast.errors import InputError
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.runs.config_file import CONFIG, read_config, write_config
from dartsfast.runs.folder import LOCK, locked
from dartsfast.runs.listing import list_runs
from dartsfast.search import CNNConfig, RNNConfig, search_cnn, search_rnn


def options_of(config):
    return {name: value for name, value in vars(config).items() if name != "out" and value is not None}


@pytest.mark.parametrize("capture", [None, False])
def test_options_come_back_as_they_were(tmp_path, capture):
    odd = 'a "b" \\ c\nd\te\x7f\x01 Ökonomie 🧬'
    config = CNNConfig(data=odd, out="elsewhere", weight_decay=1e-7, cutout=True, seed=2**63, capture=capture)
    write_config(tmp_path, ("search", "cnn"), config)
    found = read_config(tmp_path / CONFIG, ("search", "cnn"), CNNConfig)
    assert found == options_of(config)
    assert all(type(value) is type(getattr(config, name)) for name, value in found.items())


def test_a_run_is_repeated_by_what_it_leaves(tmp_path, capsys):
    first = search_cnn(CNNConfig(**cnn_options(tmp_path), seed=5, out=str(tmp_path / "first")))
    again = ["search", "cnn", "--config", str(first.out / CONFIG), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    states = [load_checkpoint(tmp_path / name, "cnn") for name in ("first", "again")]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    assert main([*again[:-1], str(tmp_path / "shorter"), "--epochs", "1"]) == 0
    state = load_checkpoint(tmp_path / "shorter", "cnn")
    assert (state["epoch"], state["config"]["seed"]) == (1, 5)
    assert main(["search", "cnn", "--resume", str(first.out), "--config", str(first.out / CONFIG)]) == 2
    assert "keeps its own options: leave out --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("command = search", "is no TOML"),
        ('command = "search"\n[options]', "is no configuration of a run"),
        ("[options]\nepochs = 3", "is no configuration of a run"),
        ('command = "search cnn"\noptions = 3', "is no configuration of a run"),
        ('command = "search rnn"\n[options]', "of `dartsfast search rnn`, not of `search cnn`"),
        ('command = "search cnn"\n[options]\nepoch = 3', "options that there are not: epoch"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "file", ("search", "cnn"), CNNConfig)
    with pytest.raises(InputError, match="cannot read"):
        read_config(tmp_path / "none", ("search", "cnn"), CNNConfig)


def test_a_wrong_value_in_a_file_is_refused_as_on_the_command_line(tmp_path, capsys):
    (tmp_path / "file").write_text('command = "search cnn"\n[options]\nepochs = "three"')
    assert main(["search", "cnn", "--config", str(tmp_path / "file")]) == 2
    assert "epochs must be of type int, got 'three'" in capsys.readouterr().err


def test_the_table_of_runs(tmp_path, capsys):
    root = tmp_path / "runs"
    cnn = search_cnn(CNNConfig(**cnn_options(tmp_path), out=str(root / "a")))
    search_rnn(RNNConfig(**{**rnn_options(tmp_path), "epochs": 1}, out=str(root / "deep" / "b")))
    rows = (cnn.out / "log.jsonl").read_text().splitlines()
    for name in ("c-stopped", "d-old", "e-damaged", "f-begun"):
        (root / name).mkdir()
        (root / name / LOCK).touch()
        if name != "d-old":
            (root / name / CONFIG).write_text((cnn.out / CONFIG).read_text())
    for name in ("c-stopped", "d-old"):
        (root / name / "log.jsonl").write_text(rows[0] + "\n")
        (root / name / "genotype.json").write_text((cnn.out / "genotype.json").read_text())
    (root / "e-damaged" / "log.jsonl").write_text(rows[0][:20])
    with locked(root / "f-begun"):
        found = {run.folder: run for run in list_runs(root)}
        assert main(["runs", str(root)]) == 0
    assert list(found) == ["a", "c-stopped", "d-old", "deep/b", "e-damaged", "f-begun"]
    columns = {name: (run.command, run.state, run.epochs) for name, run in found.items()}
    assert columns == {
        "a": ("search cnn", "finished", "2/2"),
        "deep/b": ("search rnn", "finished", "1/1"),
        "c-stopped": ("search cnn", "stopped", "1/2"),
        "d-old": ("?", "?", "1/?"),
        "e-damaged": ("?", "damaged", ""),
        "f-begun": ("search cnn", "running", "0/2"),
    }
    best = max(cnn.history, key=lambda row: row["valid_acc"])
    last_best = max(row["epoch"] for row in cnn.history if row["valid_acc"] == best["valid_acc"])
    assert found["a"].measure == f"valid_acc {best['valid_acc']:.4g} in epoch {last_best}"
    assert found["deep/b"].measure.startswith("valid_ppl ")
    assert found["a"].genotype == found["c-stopped"].genotype != found["deep/b"].genotype
    assert len(found["a"].genotype) == 8 and found["f-begun"].genotype == found["f-begun"].measure == ""
    shown = capsys.readouterr().out
    assert all(name in shown for name in found)


def test_a_training_is_measured_by_its_last_test(tmp_path):
    (tmp_path / LOCK).touch()
    rows = [{"epoch": k, "test_acc": value, "seconds": 1800.0} for k, value in ((1, 30.0), (2, 20.0))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = list_runs(tmp_path)
    assert (run.folder, run.measure, run.hours) == (tmp_path.name, "test_acc 20 in epoch 2", "1.00")


def test_where_there_are_no_runs(tmp_path, capsys):
    assert main(["runs", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["runs", str(tmp_path)]) == 2
    assert "there are no runs below" in capsys.readouterr().err
