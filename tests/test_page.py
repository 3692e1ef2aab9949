"""The page that a run leaves: what it says against what the run logged; of a run resumed, old or damaged."""

import json
import os
import re
import shlex
import shutil
import signal

import pytest
from read_page import Page
from small_runs import cnn_options, rnn_options

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

import numpy as np
import torch

from dartsfast.cli import main
from dartsfast.drawing import inline
from dartsfast.errors import RunStopped
from dartsfast.genotypes import published
from dartsfast.runs.journal import Journal
from dartsfast.runs.page import write_report
from dartsfast.runs.record import COMPETITION, read_run
from dartsfast.runs.run import Run
from dartsfast.search import CNNConfig, RNNConfig, search_cnn, search_rnn


def read(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def frames(text):
    return json.loads(re.search(r'<script type="application/json" id="frames">(.*?)</script>', text)[1])[
        "frames"
    ]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A search whose folder and data have names that would break out of a page."""
    base = tmp_path_factory.mktemp("cnn") / "a<b>\"c'&amp;"
    return search_cnn(CNNConfig(**cnn_options(base), arch_learning_rate=0.1, out=str(base / "<script>run")))


def test_the_numbers_are_those_of_the_log(cnn):
    rows = [json.loads(line) for line in (cnn.out / "log.jsonl").read_text().splitlines()]
    names, *lines = Page(read(cnn.out)).table("log")
    assert names == list(rows[0])
    assert [dict(zip(names, line, strict=True)) for line in lines] == [
        {name: str(value) if name == "epoch" else f"{value:.6g}" for name, value in row.items()}
        for row in rows
    ]
    assert len(rows) == 2 and rows[0]["train_loss"] != rows[1]["train_loss"]


def test_curves_go_through_the_numbers_of_the_log(cnn):
    """Every marked point says its value, and lies where the ticks beside it say."""
    text = read(cnn.out)
    for measure, title in (("loss", "loss"), ("acc", "accuracy, %")):
        picture = re.search(rf'<svg class="curves" role="img" aria-label="{title}".*?</svg>', text)[0]
        scale = [
            (float(y), float(value))
            for y, value in re.findall(
                r'<text class="tick end" x="40.0" y="([\d.]+)">([-\d.e]+)</text>', picture
            )
        ]
        (y0, v0), (y1, v1) = scale[0], scale[-1]
        marked = re.findall(
            r'<circle class="point (\w+)" cx="[\d.]+" cy="([\d.]+)"[^>]*><title>\w+, epoch (\d+): ([^<]+)<',
            picture,
        )
        assert len(marked) == 4
        for split, y, epoch, value in marked:
            logged = cnn.history[int(epoch) - 1][f"{split}_{measure}"]
            assert value == f"{logged:.5g}"
            assert v0 + (float(y) + 3.5 - y0) * (v1 - v0) / (y1 - y0) == pytest.approx(
                logged, abs=0.002 * abs(v1 - v0)
            )


def test_alphas_of_every_epoch_are_there(cnn):
    shown = frames(read(cnn.out))
    assert [frame["epoch"] for frame in shown] == [1, 2]
    notes = [json.loads(line) for line in (cnn.out / "epochs.jsonl").read_text().splitlines()]
    for frame, note in zip(shown, notes, strict=True):
        for part, (name, table) in zip(frame["tables"], note["alphas"].items(), strict=True):
            raw = np.exp(np.array(table["weights"]))
            wanted = 100 * raw / raw.sum(1, keepdims=True)
            np.testing.assert_allclose(np.reshape(part["percent"], wanted.shape), wanted, atol=0.00501)
            ops, edges = table["operations"], table["edges"]
            assert part["best"] == [row * 8 + 1 + int(wanted[row, 1:].argmax()) for row in range(14)]
            first = [0, 2, 5, 9]  # edges of node k begin here
            entries = table["kept"]
            assert {
                (first[k // 2] + source) * len(ops) + ops.index(op) for k, (op, source) in enumerate(entries)
            } == set(part["kept"])
            assert len(edges) == 14 and name in ("alphas_normal", "alphas_reduce")
    last = {name: table["weights"] for name, table in notes[-1]["alphas"].items()}
    assert last == {name: table.tolist() for name, table in cnn.alphas.items()}
    assert shown[0]["tables"] != shown[1]["tables"]


def test_cells_are_those_of_the_genotype(cnn):
    """Every edge has its operation, and leads from its source's box to its target's."""
    pictures = re.findall(r'<svg class="cell".*?</svg>', read(cnn.out))
    assert len(pictures) == 2
    for picture, entries in zip(pictures, (cnn.genotype.normal, cnn.genotype.reduce), strict=True):
        assert sorted(re.findall(r'<text class="op"[^>]*>([^<]+)<', picture)) == sorted(
            op for op, _ in entries
        )
        kinds = "input|node|output"
        rect = rf'<rect class="(?:{kinds})" x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)" rx="8"/>'
        found = re.findall(rect + r'<text class="name"[^>]*>(.*?)</text>', picture)
        boxes = {re.sub("<.*?>", "", name): tuple(map(float, place)) for *place, name in found}
        names = ["ck-2", "ck-1", "0", "1", "2", "3", "ck"]
        assert sorted(boxes) == sorted(names)
        edges = [(source, 2 + k // 2) for k, (_, source) in enumerate(entries)] + [
            (k, 6) for k in range(2, 6)
        ]
        ways = re.findall(r'class="edge" d="M([\d.]+),([\d.]+).*?class="tip" d="M([\d.]+),([\d.]+) ', picture)
        assert len(ways) == len(edges)
        for (source, target), way in zip(edges, ways, strict=True):
            x0, y0, x1, y1 = map(float, way)
            (left, _, width, _), (at, top, _, height) = boxes[names[source]], boxes[names[target]]
            assert x0 == pytest.approx(left + width, abs=0.2) and x1 == pytest.approx(at, abs=0.2)
            assert top < y1 < top + height
            assert y0 == pytest.approx(boxes[names[source]][1] + boxes[names[source]][3] / 2, abs=0.2)


def test_a_page_is_whole_escaped_and_needs_nothing_else(cnn):
    text = read(cnn.out)
    page = Page(text)
    assert page.references == []
    assert not re.search(r"url\(|@import|https?:|//[a-z]", text), "nothing from elsewhere"
    assert text.count("<script") == 2 == sum(tag == "script" for tag, _ in page.tags)
    assert str(cnn.out) in page.texts
    assert f"dartsfast search cnn --config {shlex.quote(str(cnn.out / 'config.toml'))}" in page.texts
    assert f"imagefolder:{cnn.out.parent / 'images'}" in [
        cell for _, rows in page.tables for row in rows for cell in row
    ]
    assert cnn.lesson in page.texts


def test_options_other_than_the_defaults_come_first(cnn):
    page = Page(read(cnn.out))
    changed, left = [rows for name, rows in page.tables if name == "options"]
    options = read_run(cnn.out).options
    default = vars(CNNConfig())
    assert {name: value for name, value in changed[1:]} == {
        name: str(options[name]) for name in options if options[name] != default[name]
    }
    assert {name for name, _ in changed[1:]} >= {"epochs", "layers", "data", "arch_learning_rate"}
    assert {name for name, _ in left[1:]} == options.keys() - {name for name, _ in changed[1:]}


def test_time_and_throughput_are_the_sums_of_the_epochs(cnn):
    notes = [json.loads(line) for line in (cnn.out / "epochs.jsonl").read_text().splitlines()]
    for note, row in zip(notes, cnn.history, strict=True):
        assert sum(note["seconds"].values()) == pytest.approx(row["seconds"])
        assert (note["iterations"], note["work"], note["unit"]) == (3, 9.0, "images")
    training = sum(note["seconds"]["training"] for note in notes)
    words = Page(read(cnn.out)).words
    assert f"{6 / training:.4g} iterations a second, {18 / training:.4g} images a second" in words
    assert re.search(r"Peak memory: resident [\d,]+ MB", words)
    assert "instruction set" in words and "all epochs are done" in words


def without_clock(folder):
    page = Page(read(folder))
    found = {name: texts for name, texts in page.by_section.items() if name != "environment"}
    text = json.dumps(found).replace(folder.name, "RUN")
    pictures = re.findall(r"<svg.*?</svg>", read(folder))
    return text, pictures, frames(read(folder))


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_gives_the_page_of_one_that_was_not_stopped(tmp_path, monkeypatch, stop):
    """Stopped by a signal in the first epoch, and in the second."""
    options = {**rnn_options(tmp_path), "epochs": 3, "arch_lr": 0.1}
    whole = search_rnn(RNNConfig(**options, out=str(tmp_path / "whole")))
    seen, record = [], Run.record

    def stopping(self, *args, **metrics):
        record(self, *args, **metrics)
        seen.append(1)
        if len(seen) == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "record", stopping)
    cut = tmp_path / "cut"
    with pytest.raises(RunStopped):
        search_rnn(RNNConfig(**options, out=str(cut)))
    page = Page(read(cut))
    (state,) = re.findall(r'id="state">([^<]*)<', read(cut))
    done = len(read_run(cut).rows)
    assert re.fullmatch(
        rf"stopped by SIGTERM in epoch {done + 1}, iteration \d, {done} of 3 epochs done", state
    )
    assert f"dartsfast search rnn --resume {cut}" in page.texts
    search_rnn(RNNConfig(), resume=cut)
    assert without_clock(cut) == without_clock(whole.out)
    assert [one["end"][:20] for one in read_run(cut).processes] == [
        "stopped by SIGTERM i",
        "all epochs are done",
    ]


def test_of_an_epoch_that_is_done_again_the_last_note_counts(tmp_path):
    """A run that was killed between note and checkpoint, in the middle of a line, or went back."""
    run = search_rnn(RNNConfig(**rnn_options(tmp_path), out=str(tmp_path / "run")))
    notes = (run.out / "epochs.jsonl").read_text().splitlines()
    stale = {**json.loads(notes[1]), "iterations": 99}
    beyond = {**stale, "epoch": 3}
    lines = [notes[0], json.dumps(stale), json.dumps(beyond), notes[1][:40]]
    (run.out / "epochs.jsonl").write_text("\n".join(lines))
    with Journal(run.out, torch.device("cpu"), ["epochs"], (1, 0), 2) as journal:
        journal.epoch(json.loads(notes[1]))
    found = read_run(run.out)
    assert [json.dumps(note) for note in found.notes.values()] == notes
    assert found.problems == [] and len(found.processes) == 2


def test_a_run_of_an_earlier_version_moved_elsewhere(cnn, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(cnn.out, old)
    for name in ("epochs.jsonl", "run.json", "run.lock", "report.html"):
        (old / name).unlink()
    assert main(["report", str(old)]) == 0
    assert capsys.readouterr().out == f"{old / 'report.html'}\n"
    page, text = Page(read(old)), read(old)
    assert "finished: 2 of 2 epochs" in page.texts and "Alphas over time" not in page.words
    assert text.count('class="curves"') == 2 and text.count('class="cell"') == 2
    assert f"dartsfast search cnn --config {old / 'config.toml'}" in page.texts
    for name in ("config.toml", "genotype.json"):
        (old / name).unlink()
    words = Page(write_report(old).read_text(encoding="utf-8")).words
    assert "2 epochs done, of how many an earlier version did not say" in words
    (old / "log.jsonl").unlink()
    assert main(["report", str(old)]) == 2
    assert "there is no run in" in capsys.readouterr().err


NOTE = {"epoch": 1, "iterations": 3, "work": 9.0, "unit": "", "seconds": {}, "alphas": {}}
TABLE = {"weights": [[0.0, 0.0]] * 2, "operations": ["none", "skip"], "edges": ["0→1", "0→2"], "kept": []}


def note(**changes):
    return json.dumps({**NOTE, **changes}) + "\n"


def table(**changes):
    return note(alphas={"a": {**TABLE, **changes}})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("log.jsonl", '{"epoch": 1', "is not JSON"),
        ("log.jsonl", '{"epoch": 1, "train_loss": "<b>"}', "not a number"),
        ("log.jsonl", '["epoch"]', "is not the row of an epoch"),
        ("config.toml", "command = 3", "is no configuration of a run"),
        ("config.toml", 'command = "search cnn"\n[options]\nepochs = "x"', "of how many epochs"),
        ("genotype.json", '{"normal": 3}', "expected the fields"),
        ("epochs.jsonl", '{"epoch": 1}\n', "lacks"),
        ("epochs.jsonl", note(iterations="<b>"), "other types"),
        ("epochs.jsonl", note(alphas={"a": 3}), "not a dict"),
        ("epochs.jsonl", note(seconds={"training": "x"}), "not a number"),
        ("epochs.jsonl", table(weights=[[0.0, 0.0], [0.0, float("inf")]]), "not a finite weight"),
        ("epochs.jsonl", table(weights=[[0.0, 0.0]]), "not a finite weight"),
        ("epochs.jsonl", table(weights=[["x"]]), "no table of alphas"),
        ("epochs.jsonl", table(kept=[["a", 0]]), "no table of alphas"),
        ("epochs.jsonl", table(kept=[["none", 7], ["none", 0]]), "no table of alphas"),
        ("epochs.jsonl", table(operations=["none", 3]), "no names"),
        ("epochs.jsonl", table(edges=3), "no table of alphas"),
        ("candidates.json", "{}", "lacks best"),
        ("candidates.json", json.dumps(COMPETITION), "what its best candidate has reached"),
        ("run.json", '{"changed": [[]], "lesson": "", "processes": []}', "no names of options"),
        ("run.json", "[]", "not of type dict"),
        ("run.json", '{"changed": [], "lesson": "", "processes": [{}]}', "lacks"),
    ],
)
def test_what_is_damaged_is_said_and_the_rest_is_shown(cnn, tmp_path, name, content, said):
    broken = tmp_path / "broken"
    shutil.copytree(cnn.out, broken)
    (broken / name).write_text(content)
    text = write_report(broken).read_text(encoding="utf-8")
    page = Page(text)
    assert "damaged" in page.texts and said in page.words
    assert ('class="curves"' in text) == (name != "log.jsonl")


def test_a_run_that_goes_on_or_was_killed(cnn, tmp_path):
    from dartsfast.runs.folder import locked

    left = tmp_path / "left"
    shutil.copytree(cnn.out, left)
    kept = json.loads((left / "run.json").read_text())
    kept["processes"][0]["end"] = ""
    (left / "run.json").write_text(json.dumps(kept))
    (left / "log.jsonl").write_text((left / "log.jsonl").read_text().splitlines()[0] + "\n")
    with locked(left):
        write_report(left)
        assert "going on: 1 of 2 epochs done" in Page(read(left)).texts
    write_report(left)
    assert "ended without a word, 1 of 2 epochs done" in Page(read(left)).texts
    assert [frame["epoch"] for frame in frames(read(left))] == [1]


def test_a_diverged_run_says_so(tmp_path, monkeypatch):
    from dartsfast.errors import DivergedError

    record = Run.record
    monkeypatch.setattr(Run, "record", lambda self, weight, loss: record(self, weight, loss=float("nan")))
    with pytest.raises(DivergedError):
        search_rnn(RNNConfig(**rnn_options(tmp_path), out=str(tmp_path / "run")))
    words = Page(read(tmp_path / "run")).words
    assert "loss is nan at epoch 1, iteration 1" in words and "0 of 2 epochs done" in words


def test_cells_of_every_published_genotype_are_drawn_as_in_the_pictures():
    for genotype in published().values():
        for _, picture in inline.inline_cells(genotype):
            Page(picture)
            _, _, width, height = map(float, re.search(r'viewBox="([^"]*)"', picture)[1].split())
            for x, y in re.findall(
                r"[ ,ML]([-\d.]+),([-\d.]+)", "".join(re.findall(r' d="([^"]*)"', picture))
            ):
                assert -8 <= float(x) <= width and -8 <= float(y) <= height


@pytest.mark.parametrize(
    "low, high", [(1.0, 3.0), (0.0, 0.0), (-2.5, 1e-3), (1e-9, 2e-9), (99.9, 100.1), (5, 5000)]
)
def test_ticks_enclose_and_are_even_and_round(low, high):
    found = inline.ticks(low, high)
    assert 2 <= len(found) <= 7 and found[0] <= low and high <= found[-1]
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:.3e}"[0] in "125"
