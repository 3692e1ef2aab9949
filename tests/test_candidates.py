"""Competitions of cells: what is drawn, trained and kept; shared and interrupted ones."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean, stdev

import pytest
from read_page import Page
from small_runs import cnn_options, rnn_options, same

from dartsfast.candidates import (
    RandomCNNConfig,
    RandomRNNConfig,
    SelectCNNConfig,
    SelectRNNConfig,
    cells,
    compete,
    draw,
    random_cnn,
    random_rnn,
    select_cnn,
    select_rnn,
)
from dartsfast.candidates.compete import Measure
from dartsfast.cli import main
from dartsfast.errors import DivergedError, InputError, RunStopped
from dartsfast.genotypes import as_genotype, resolve_genotype
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.runs.folder import locked
from dartsfast.runs.report import Report
from dartsfast.search import CNNConfig, search_cnn
from dartsfast.train import TrainCNNConfig, train_cnn


@pytest.fixture(autouse=True)
def drawings(monkeypatch):
    """Draw no pictures of runs, most of their time; return those that would be drawn."""
    found = []
    monkeypatch.setattr(Report, "draw", lambda report, pictures, *rest, **how: found.append(report.out))
    return found


def random_config(tmp_path, **options):
    small = {"epochs": 1, "layers": 3, "candidates": 3, **options}
    return RandomCNNConfig(**{**cnn_options(tmp_path), **small}, out=str(tmp_path / "out"))


def select_config(tmp_path, **options):
    own = cnn_options(tmp_path)
    shared = {name: own.pop(name) for name in ("data", "image_size")}
    parts = {f"{prefix}_{name}": value for prefix in ("search", "train") for name, value in own.items()}
    small = {**shared, **parts, "searches": 2, "search_epochs": 1, "train_epochs": 1, **options}
    return SelectCNNConfig(**small, out=str(tmp_path / "out"))


def test_random_cells_are_trained_one_by_one_and_the_best_is_kept(tmp_path, capsys, drawings):
    config = random_config(tmp_path, seed=5)
    result = random_cnn(config)
    assert drawings == [result.out / c.name for c in result.candidates for _ in range(2)]
    reached = []
    for number, candidate in enumerate(result.candidates):
        cell = draw.draw_cnn(5 + number)
        alone = tmp_path / f"alone-{number}"
        common = {f.name: getattr(config, f.name) for f in fields(TrainCNNConfig) if f.name != "arch"}
        trained = train_cnn(TrainCNNConfig(**{**common, "arch": repr(cell), "out": str(alone)}))
        same(load_checkpoint(alone, "train-cnn"), load_checkpoint(result.out / candidate.name, "train-cnn"))
        assert candidate.genotype == trained.genotype == as_genotype(cell)
        assert candidate.measure == trained.history[-1]["valid_acc"]
        reached.append(candidate.measure)
    best = result.candidates[reached.index(max(reached))]
    assert (result.best, result.genotype) == (best.name, best.genotype)
    assert (result.mean, result.deviation) == (mean(reached), stdev(reached))
    assert resolve_genotype(str(result.out)) == best.genotype
    table = json.loads((result.out / "candidates.json").read_text())
    assert [row["measure"] for row in table["candidates"]] == reached and table["best"] == best.name
    assert (
        result.out / "cell.png"
    ).exists() and "3 of 3 candidates done: 2, valid_acc" in capsys.readouterr().out
    page = Page((result.out / "report.html").read_text(encoding="utf-8"))
    (header, *rows), state = page.table("candidates"), "finished: 3 of 3 candidates"
    assert header[:3] == ["candidate", "valid_acc", "cell"] and state in page.texts
    assert [row[:3] for row in rows] == [[c.name, f"{c.measure:.6g}", c.digits] for c in result.candidates]
    assert [row[0] for row in rows if row[3]] == [best.name] and page.by_section["cells"]


def test_a_selection_trains_what_its_searches_found(tmp_path):
    config = select_config(tmp_path, seed=7)
    result = select_cnn(config)
    for number, candidate in enumerate(result.candidates):
        own = {f.name: getattr(config, f"search_{f.name}", None) for f in fields(CNNConfig)}
        own = {name: value for name, value in own.items() if hasattr(config, f"search_{name}")}
        shared = {"data": config.data, "image_size": 8, "seed": 7 + number}
        found = search_cnn(CNNConfig(**own, **shared, out=str(tmp_path / f"search-{number}")))
        assert candidate.genotype == found.genotype
        trained = load_checkpoint(result.out / candidate.name / "train", "train-cnn")
        assert trained["config"]["arch"] == repr(found.genotype) and trained["config"]["seed"] == 7
        assert candidate.measure == trained["history"][-1]["valid_acc"]


def rnn_parts(tmp_path, **options):
    """Return options of recurrent trainings, and of searches."""
    common = rnn_options(tmp_path)
    data, epochs = common.pop("data"), common.pop("epochs")
    return data, {**common, "bptt": 10, "epochs": epochs, "lr": 1.0, "dropoute": 0.1, **options}


def test_random_recurrent_cells_are_judged_by_their_best_epoch(tmp_path):
    data, small = rnn_parts(tmp_path, epochs=3)
    config = RandomRNNConfig(data=data, **small, candidates=2, out=str(tmp_path / "out"))
    result = random_rnn(config)
    for number, candidate in enumerate(result.candidates):
        state = load_checkpoint(result.out / candidate.name, "train-rnn")
        assert candidate.genotype == as_genotype(draw.draw_rnn(config.seed + number))
        assert state["config"]["arch"] == repr(candidate.genotype) and state["config"]["epochs"] == 3
        assert candidate.measure == min(row["valid_ppl"] for row in state["history"])
    assert result.candidates[int(result.best)].measure == min(c.measure for c in result.candidates)
    measure = Measure("valid_ppl", "", sign=-1, last=False)
    assert measure.reached([{"valid_ppl": 3.0}, {"valid_ppl": 2.0}, {"valid_ppl": 4.0}]) == 2.0
    assert measure._replace(last=True).reached([{"valid_ppl": 3.0}, {"valid_ppl": 4.0}]) == 4.0


def test_a_selection_of_recurrent_cells_trains_what_its_searches_found(tmp_path):
    data, small = rnn_parts(tmp_path, epochs=1)
    parts = {f"{prefix}_{name}": value for prefix in ("search", "train") for name, value in small.items()}
    result = select_rnn(SelectRNNConfig(data=data, **parts, searches=2, out=str(tmp_path / "out")))
    for number, candidate in enumerate(result.candidates):
        found = load_checkpoint(result.out / candidate.name / "search", "rnn")
        trained = load_checkpoint(result.out / candidate.name / "train", "train-rnn")
        assert found["config"]["seed"] == SelectRNNConfig.seed + number
        cell = resolve_genotype(str(result.out / candidate.name / "search"))
        assert trained["config"]["arch"] == repr(candidate.genotype) == repr(cell)
        assert candidate.measure == trained["history"][-1]["valid_ppl"]


def interrupted(monkeypatch, at):
    """Let a signal stop the training number ``at`` before it does anything."""
    calls, train = [], cells.CNN.train

    def stopped(config, *, resume=None):
        calls.append(config.out)
        if len(calls) == at:
            raise RunStopped("stopped", signal.SIGTERM)
        return train(config, resume=resume)

    monkeypatch.setattr(cells, "CNN", cells.CNN._replace(train=stopped))
    return calls


@pytest.mark.parametrize(
    ("make", "run", "count"),
    [(random_config, random_cnn, {"candidates": 2}), (select_config, select_cnn, {"searches": 1})],
)
def test_a_stopped_competition_goes_on_with_what_is_left(tmp_path, monkeypatch, make, run, count):
    config, (number,) = make(tmp_path, **count), count.values()
    whole = run(replace(config, out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        calls = interrupted(patch, at=number)
        with pytest.raises(RunStopped, match=f"with {number - 1} of {number} candidates done") as stopped:
            run(config)
    words = str(stopped.value).partition("Go on with: dartsfast ")[2].split()
    assert words[2:] == ["--resume", config.out] and stopped.value.signum == signal.SIGTERM
    with monkeypatch.context() as patch:
        calls = interrupted(patch, at=0)
        assert main(words) == 0
        assert len(calls) == number  # those that are done say so
    again = run(type(config)(), resume=config.out)
    assert again.candidates == whole.candidates and again.lesson == whole.lesson
    for name in (c.name for c in whole.candidates):
        place = Path(name) / "train" if run is select_cnn else Path(name)
        same(*(load_checkpoint(Path(out) / place, "train-cnn") for out in (config.out, whole.out)))


def process(config):
    """Start the command of a competition in a process of its own."""
    options = [f"--{f.name}={getattr(config, f.name)}" for f in fields(config) if f.type in ("int", "str")]
    command = [sys.executable, "-m", "dartsfast", "random", "cnn", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def until(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"the process ended before it said {words!r}")


def test_processes_share_a_competition(tmp_path, monkeypatch):
    monkeypatch.setattr(compete, "PATIENCE", 0.1)
    config = random_config(tmp_path, candidates=4)
    with process(config) as other:
        until(other, "run in")
        mine = random_cnn(RandomCNNConfig(), resume=config.out)
        assert other.stdout.read() is not None and other.wait() == 0
    whole = random_cnn(replace(config, out=str(tmp_path / "whole")))
    assert mine.candidates == whole.candidates and mine.lesson == whole.lesson
    tables = [json.loads((Path(out) / "candidates.json").read_text()) for out in (config.out, whole.out)]
    assert tables[0] == tables[1]


def test_who_is_alone_waits_for_a_candidate_that_another_process_holds(tmp_path, monkeypatch, capsys):
    """And takes it over when that process has gone."""
    config = random_config(tmp_path)
    held = contextlib.ExitStack()
    (tmp_path / "out" / "1").mkdir(parents=True)
    held.enter_context(locked(tmp_path / "out" / "1"))
    monkeypatch.setattr(compete.time, "sleep", lambda seconds: held.close())
    result = random_cnn(config)
    text = capsys.readouterr().out
    assert "waiting for other processes: 1" in text and "3 of 3 candidates done: 1" in text
    assert [c.name for c in result.candidates] == ["0", "1", "2"]


def test_a_table_is_there_as_soon_as_one_is_done(tmp_path, monkeypatch, capsys):
    config = random_config(tmp_path)
    calls = interrupted(monkeypatch, at=3)
    with pytest.raises(RunStopped, match="with 2 of 3 candidates done"):
        random_cnn(config)
    page = Page((Path(config.out) / "report.html").read_text(encoding="utf-8"))
    assert [row[0] for row in page.table("candidates")[1:]] == ["0", "1"]
    assert len(calls) == 3 and main(["runs", str(tmp_path)]) == 0
    (listed,) = [line for line in capsys.readouterr().out.splitlines() if "random cnn" in line]
    assert "2/3" in listed and "stopped" in listed
    table = json.loads((Path(config.out) / "candidates.json").read_text())
    assert f"(candidate {table['best']})" in listed
    with locked(Path(config.out) / "1"):
        assert main(["runs", str(tmp_path)]) == 0
    (listed,) = [line for line in capsys.readouterr().out.splitlines() if "random cnn" in line]
    assert "running" in listed


def test_what_other_processes_have_done_stays_in_the_table(tmp_path):
    config = random_config(tmp_path)
    mine = random_cnn(replace(config, candidates=2)).candidates[0]
    these = compete.Competition(config, tmp_path / "out", ("random", "cnn"), "")
    compete._write(these, cells.CNN.measure, [replace(mine, name="2", measure=99.0)])
    table = json.loads((tmp_path / "out" / "candidates.json").read_text())
    assert [row["name"] for row in table["candidates"]] == ["0", "1", "2"] and table["best"] == "2"


def test_how_to_go_on_has_the_options_of_this_process(tmp_path, monkeypatch):
    config = random_config(tmp_path, checkpoint_seconds=7.0, device="cpu")
    interrupted(monkeypatch, at=1)
    with pytest.raises(RunStopped, match=f"--resume {config.out} --device cpu --checkpoint_seconds 7.0$"):
        random_cnn(config)

    def pressed(*given, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "CNN", cells.CNN._replace(train=pressed))
    again = RandomCNNConfig(data=config.data)
    with pytest.raises(RunStopped, match=f"--resume {config.out} --data {config.data}$") as stopped:
        random_cnn(again, resume=config.out)
    assert stopped.value.signum == signal.SIGINT


def test_candidates_of_another_competition_are_not_counted(tmp_path):
    config = random_config(tmp_path, candidates=1)
    out = random_cnn(config).out
    options = out / "config.toml"
    options.write_text(options.read_text().replace("epochs = 1", "epochs = 2"))
    with pytest.raises(InputError, match="holds a run with epochs 1, and this competition has 2"):
        random_cnn(RandomCNNConfig(), resume=out)
    options.write_text(
        options.read_text().replace("epochs = 2", "epochs = 1").replace("seed = 0", "seed = 9")
    )
    with pytest.raises(InputError, match="holds a run with (arch|seed)"):
        random_cnn(RandomCNNConfig(), resume=out)
    options.write_text(options.read_text() + "steps = 3\n")
    with pytest.raises(InputError, match="has options that there are not: steps"):
        random_cnn(RandomCNNConfig(), resume=out)


def test_an_option_that_cannot_work_leaves_no_folder_in_the_way(tmp_path):
    config = random_config(tmp_path, candidates=1)
    for wrong in ({"device": "cuda:77"}, {"data": "cifar10:/nowhere"}, {"auxiliary": True}):
        with pytest.raises(InputError):
            random_cnn(replace(config, **wrong))
    assert random_cnn(config).best == "0"


def test_who_diverges_is_out_of_the_competition(tmp_path, monkeypatch, capsys):
    config = random_config(tmp_path, candidates=2)
    train = cells.CNN.train

    def diverges(given, *, resume=None):
        if given.out.endswith("0"):
            raise DivergedError("loss is nan")
        return train(given, resume=resume)

    monkeypatch.setattr(cells, "CNN", cells.CNN._replace(train=diverges))
    result = random_cnn(config)
    assert result.candidates[0] == compete.Candidate("0", None, None)
    assert (result.best, result.deviation) == ("1", 0.0)
    assert "out of the competition: loss is nan" in capsys.readouterr().out
    with pytest.raises(DivergedError, match="no winner: all of its candidates diverged"):
        random_cnn(replace(config, out=str(tmp_path / "one"), candidates=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_portion": 1.0}, "train_portion must be below 1, got 1.0: cells are chosen by images held"),
        ({"candidates": 0}, "candidates must be above 0"),
        ({"epochs": 0}, "epochs must be above 0"),
    ],
)
def test_options_that_cannot_work(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        random_cnn(random_config(tmp_path, **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_epochs": 0}, "of the options --train_...: epochs must be above 0"),
        ({"search_layers": 0}, "of the options --search_...: layers must be above 0"),
        ({"train_portion": 1.0}, "train_portion must be below 1"),
    ],
)
def test_options_of_the_parts_are_checked_before_anything_runs(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        select_cnn(select_config(tmp_path, **options))
    assert not (tmp_path / "out").exists()


def test_what_is_no_competition_is_not_gone_on_with(tmp_path, capsys):
    config = random_config(tmp_path, candidates=1)
    out = random_cnn(config).out
    with pytest.raises(InputError, match="holds a run already: go on with --resume"):
        random_cnn(config)
    with pytest.raises(InputError, match="has the options of `dartsfast random cnn`, not of `select cnn`"):
        select_cnn(SelectCNNConfig(), resume=out)
    with pytest.raises(InputError, match="nothing to go on with in"):
        random_cnn(RandomCNNConfig(), resume=tmp_path)
    assert main(["train", "cnn", "--config", str(out / "config.toml")]) == 2
    assert "has the options of `dartsfast random cnn`" in capsys.readouterr().err


def test_a_competition_is_repeated_from_its_options_and_listed(tmp_path, capsys):
    config = random_config(tmp_path, candidates=1)
    first = random_cnn(config)
    assert (
        main(["random", "cnn", "--config", str(first.out / "config.toml"), "--out", str(tmp_path / "b")]) == 0
    )
    assert first.lesson in capsys.readouterr().out
    assert main(["runs", str(tmp_path)]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if "random cnn" in line]
    assert len(listed) == 2 and all("finished" in line and "1/1" in line for line in listed)


def test_a_killed_competition_goes_on(tmp_path):
    config = random_config(tmp_path, candidates=2, epochs=2)
    with process(config) as killed:
        until(killed, "1 of 2 candidates done")
        until(killed, "epoch 1/2  train_loss")
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    whole = random_cnn(replace(config, out=str(tmp_path / "whole")))
    again = random_cnn(RandomCNNConfig(), resume=config.out)
    assert again.candidates == whole.candidates


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "1", "--device", "cpu"], "--gpu and --device say the same"),
        (["--save", "a", "--out", "b"], "--save and --out say the same"),
        (["--resume", "~nobody-of-this-name/run"], "nothing to go on with"),
    ],
)
def test_command_lines_that_contradict_themselves(capsys, words, message):
    assert main(["random", "cnn", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
