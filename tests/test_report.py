"""What a run shows: progress on a narrow terminal, the time left, the sentence at its end, its pictures."""

import io
import json

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from rich.console import Console

from dartsfast.cnn.genotypes import DARTS_V1, DARTS_V2, PRIMITIVES
from dartsfast.drawing import draw_alphas, draw_genotype
from dartsfast.runs.detail import saying
from dartsfast.runs.progress import Progress, clock_time
from dartsfast.runs.report import Picture, Report
from dartsfast.search.lesson import accuracy_lesson, perplexity_lesson, preferences


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def shown(progress, width=60):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(progress)
    return console.file.getvalue().splitlines()


def run(progress, clock, epochs, steps, seconds, *, units=1, end=0.0, first=0):
    """Go through ``epochs`` of ``steps`` iterations that take ``seconds``."""
    for epoch in epochs:
        for step in range(first + 1, steps + 1):
            clock.now += seconds
            progress.iteration(epoch, units * step, step, {"loss": 1.23456, "acc": 45.678})
        if end:
            progress.phase = "validating"
            clock.now += end


def test_progress_is_whole_at_sixty_columns():
    clock = Clock()
    progress = Progress(100, 10_000, clock)
    assert "starting" in shown(progress)[1]
    run(progress, clock, [98], 9_000, 0.02)
    progress.phase = "validating"
    first, second = shown(progress)
    assert first.startswith("epoch 99/100 ") and first.rstrip().endswith("99 % 3:40 left")
    assert second.rstrip() == "validating  9000/10000  50 it/s  loss 1.235  acc 45.68"
    assert max(map(len, shown(progress))) <= 60
    assert len(shown(progress, 40)) == 2, "cut, not wrapped"


def test_iterations_that_are_no_units_of_work_are_counted():
    clock = Clock()
    progress = Progress(3, 240, clock)
    run(progress, clock, [0], 6, 2.5, units=20)
    first, second = shown(progress)
    assert first.startswith("epoch 1/3 ") and "17 %" in first and first.rstrip().endswith("1:15 left")
    assert second.rstrip() == "training  iteration 6  0.4 it/s  loss 1.235  acc 45.68"


def test_the_time_left_counts_iterations_and_the_ends_of_epochs():
    clock = Clock()
    progress = Progress(5, 10, clock)
    assert progress.seconds_left() is None
    run(progress, clock, range(2), 10, 3.0, end=6.0)
    # 3 epochs of 10 iterations, and 4 ends (that of the second is under way since 6 seconds).
    assert progress.seconds_left() == pytest.approx(3 * 30 + 4 * 6 - 6)
    clock.now += 1
    assert progress.seconds_left() == pytest.approx(3 * 30 + 4 * 6 - 7)
    clock.now += 1000
    assert progress.seconds_left() == 0


def test_the_time_left_is_smooth_and_follows():
    clock = Clock()
    progress = Progress(2, 1000, clock)
    run(progress, clock, [0], 100, 1.0)
    before = progress.seconds_left()
    clock.now += 11.0  # one slow iteration
    progress.iteration(0, 101, 101, {})
    assert before < progress.seconds_left() < 2.1 * before
    for step in range(102, 202):
        clock.now += 3.0
        progress.iteration(0, step, step, {})
    assert progress.seconds_left() == pytest.approx(3.0 * 1799, rel=0.01)


def test_what_was_done_before_a_resumption_does_not_count():
    clock = Clock()
    progress = Progress(4, 100, clock)
    run(progress, clock, [2], 60, 2.0, first=50)
    assert progress.seconds_left() == pytest.approx(2.0 * (40 + 100))
    assert " 65 % " in shown(progress)[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (184, "3:04"), (3599.7, "1:00:00"), (90061, "25:01:01")],
)
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text


def test_phases_follow_the_search(tmp_path):
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    with Report(tmp_path, epochs=1, work=2, every=1, history=[], console=console) as report:
        seen = [report.progress.phase]
        report.iteration(0, 1, 1, {"loss": 1.0})
        seen.append(report.progress.phase)
        report.phase("validating")
        seen.append(report.progress.phase)
        report.draw(pictures(DARTS_V2, 1), [{"epoch": 1, "train_loss": 1.0}])
        seen.append(report.progress.phase)
    assert seen == ["starting", "training", "validating", "drawing"]


def pictures(genotype, epoch):
    edges = [f"{j}→{i}" for i in range(4) for j in range(2 + i)]
    tables = {"alphas_normal": (torch.zeros(14, 8), PRIMITIVES, edges, genotype.normal)}
    return {
        "alphas": Picture(epoch, lambda path: draw_alphas(tables, path)),
        "cell": Picture(genotype, lambda path: draw_genotype(genotype, path)),
    }


def test_only_what_changed_is_drawn_until_the_end(tmp_path):
    history = []
    with Report(
        tmp_path, epochs=3, work=1, every=1, history=[], console=Console(file=io.StringIO())
    ) as report:
        for epoch, genotype in enumerate((DARTS_V1, DARTS_V1, DARTS_V2), start=1):
            history.append({"epoch": epoch, "train_loss": 1.0 / epoch})
            report.draw(pictures(genotype, epoch), history)
            report.epoch(history[-1], genotype)
        names = {file.name for file in (tmp_path / "pictures").iterdir()}
        assert names == {*(f"alphas-00{k}.png" for k in (1, 2, 3)), "cell-001.png", "cell-003.png"}
        assert not list(tmp_path.glob("*.svg"))
        report.draw(pictures(DARTS_V2, 3), history, final=True)
    for name in ("cell", "alphas", "curves"):
        assert (tmp_path / f"{name}.svg").exists()
    assert (tmp_path / "cell.png").read_bytes() == (tmp_path / "pictures" / "cell-003.png").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_a_log_without_a_terminal_is_lines_of_its_own(tmp_path):
    console = Console(file=io.StringIO(), width=60)
    with Report(tmp_path, epochs=2, work=4, every=2, history=[], console=console) as report:
        for step in range(1, 5):
            report.iteration(0, step, step, {"loss": 1.0})
        report.epoch({"epoch": 1, "train_loss": 1.0, "seconds": 2.0}, DARTS_V2)
    assert console.file.getvalue().splitlines() == [
        "epoch 1/2  2/4  loss 1",
        "epoch 1/2  4/4  loss 1",
        "epoch 1/2  train_loss 1  seconds 2",
    ]


@pytest.mark.parametrize(
    ("much", "lines", "shown"), [("quiet", 0, False), ("normal", 0, True), ("verbose", 2, True)]
)
def test_how_much_is_said_on_a_terminal(tmp_path, much, lines, shown):
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    with (
        saying(much),
        Report(tmp_path, epochs=1, work=2, every=1, history=[], console=console) as report,
    ):
        for step in (1, 2):
            report.iteration(0, step, step, {"loss": 1.0})
        report.epoch({"epoch": 1, "train_loss": 1.0}, DARTS_V2)
        report.phases({"training": 2.0, "validating": 0.25}, 3)
    text = console.file.getvalue()
    assert text.count("/2  loss 1\n") == lines
    assert ("epoch 1/1  train_loss 1\n" in text) == shown
    assert ("  training 2 s, validating 0.25 s; 1.5 it/s\n" in text) == (much == "verbose")
    assert bool(text) == shown and (tmp_path / "log.jsonl").exists()


def test_the_accuracy_is_judged_against_chance():
    assert accuracy_lesson(71.2, 320, 10, "photographs") == (
        "the search network tells 10 photographs apart: 71 % right on 320 images that its weights were not "
        "trained on (10 % by chance)"
    )
    assert "does not yet tell 10 classes apart: 14 % right" in accuracy_lesson(14.0, 320, 10, "classes")
    assert "tells 10" in accuracy_lesson(14.0, 10_000, 10, "classes"), "of so many that is no luck"
    assert "does not yet tell 2 classes" in accuracy_lesson(55.0, 100, 2, "classes")
    assert "nothing to tell apart: all 8 images" in accuracy_lesson(100.0, 8, 1, "classes")


def test_the_perplexity_is_judged_against_chance():
    assert "between 202.3 words (1593 by chance)" in perplexity_lesson(202.34, 1593)
    assert "not yet know" in perplexity_lesson(1700.0, 1593)
    assert "perplexity inf of" in perplexity_lesson(float("inf"), 1593)
    assert "between 23456 words (30000 by chance)" in perplexity_lesson(23456.4, 30_000)


def test_preferences_are_those_of_the_weights():
    ops = ["none", "tanh", "relu"]
    uneven = torch.log(torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.2, 0.6]]))  # [edges, operations]
    text = preferences({"weights": (uneven, ops, ["0→1", "0→2"])})
    assert text == (
        "weights prefer relu (on average 40.0 % an edge, 33.33 % at the start; "
        "single weights from 10.0 to 60.0 %)"
    )
    even = preferences({"weights": (torch.tensor([[5.0, 0.0, 0.001]]), ops, ["0→1"])})
    assert even.startswith("weights are still even (from 0.66 to 0.67 %")
