"""Trainings of recurrent cells that go back, and that go on after a stop: to the same bits."""

import json
import math
import signal
import subprocess
import sys

import pytest
import torch
from small_rnn_training import DROPOUTS, SIZES, config
from small_rnn_training import data as data  # fixtures
from small_rnn_training import one_thread as one_thread
from small_runs import same

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.errors import DivergedError, RunStopped
from dartsfast.rnn import utils as rnn_utils
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.train import TrainRNNConfig, train_rnn
from dartsfast.train import rnn as training_module
from dartsfast.train.rnn import RNNTraining


class Planted:
    """Makes losses NaN in given iterations, counted over all epochs, also those that are done again."""

    def __init__(self, monkeypatch, *places, signal_after=None):
        self.iteration, self.places, self.seen = RNNTraining.iteration, places, 0
        planted = self

        def iteration(training, x, y, hidden):
            loss, norm, hidden = planted.iteration(training, x, y, hidden)
            planted.seen += 1
            if planted.seen == signal_after:
                training.stop.ask(signal.SIGTERM)
            if planted.seen in planted.places:
                with torch.no_grad():
                    training.model.decoder.bias.fill_(math.nan)
                return math.nan, norm, hidden * math.nan
            return loss, norm, hidden

        monkeypatch.setattr(RNNTraining, "iteration", iteration)


EVEN = {"bptt": 40, "max_seq_len_delta": 0, "epochs": 3}


def steps_an_epoch(data):
    training = RNNTraining(config(data, **EVEN))
    return sum(1 for _ in training.iterations())


def test_a_training_goes_back_to_its_best_epoch_after_nan(data, tmp_path, monkeypatch, capsys, undrawn):
    """That is the first, whose validation the second and the third do not reach."""
    monkeypatch.setattr(RNNTraining, "_draw_length", lambda self: 40)  # as many iterations in every epoch
    losses = iter([3.0, 3.5, 3.4, 3.2, 4.0])
    monkeypatch.setattr(training_module, "text_loss", lambda *args: next(losses))
    Planted(monkeypatch, 2 * steps_an_epoch(data) + 2)
    result = train_rnn(config(data, out=str(tmp_path / "run"), **EVEN))
    assert "loss is nan at epoch 3, iteration 2: going back to the end of epoch 1" in capsys.readouterr().out
    assert [row["valid_loss"] for row in result.history] == [3.0, 3.4, 3.2] and next(losses, None) is None
    rows = [json.loads(line) for line in (result.out / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3] == [row["epoch"] for row in result.history]
    assert all(math.isfinite(row["valid_loss"]) for row in rows)


def test_an_infinite_gradient_is_the_same(data, tmp_path, monkeypatch, capsys, undrawn):
    """It is noticed at once, not when a checkpoint happens to be written."""
    iteration, planted = RNNTraining.iteration, []

    def with_one(self, *args):
        loss, norm, hidden = iteration(self, *args)
        if self.epoch == 1 and not planted:
            planted.append(norm)
            norm = math.inf
        return loss, norm, hidden

    monkeypatch.setattr(RNNTraining, "iteration", with_one)
    train_rnn(config(data, out=str(tmp_path / "run"), **{**EVEN, "epochs": 2}))
    assert "the gradient's norm is inf at epoch 2, iteration 1: going back" in capsys.readouterr().out


def test_going_back_has_an_end(data, tmp_path, monkeypatch, capsys, undrawn):
    Planted(monkeypatch, *range(steps_an_epoch(data) + 1, 10**4))
    with pytest.raises(
        DivergedError, match="diverged again after it went back 10 times to the end of epoch 1"
    ):
        train_rnn(config(data, out=str(tmp_path / "run"), **EVEN))
    assert capsys.readouterr().out.count("going back to the end of epoch 1") == 10


def test_there_is_no_way_back_in_the_first_epoch(data, tmp_path, monkeypatch, undrawn):
    Planted(monkeypatch, 1)
    with pytest.raises(DivergedError, match="loss is nan at epoch 1, iteration 1: the training has diverged"):
        train_rnn(config(data, out=str(tmp_path / "run"), **EVEN))


MOMENTS = {
    "in SGD": lambda n: 2,
    "before the trigger": lambda n: 3 * n,
    "right after the trigger": lambda n: None,
    "first of the averages": lambda n: 3 * n + 1,
    "in the averages": lambda n: 4 * n + 1,
    "right after going back": lambda n: 4 * n + 2,
    "after going back": lambda n: 4 * n + 4,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_training_goes_on_to_the_same_bits(data, tmp_path, monkeypatch, undrawn, moment):
    """Validations are given: weights are averaged from epoch 4 on. It diverges in epoch 5."""
    options = {**EVEN, "epochs": 6, "nonmono": 1, **DROPOUTS}
    monkeypatch.setattr(RNNTraining, "_draw_length", lambda self: 40)  # as many iterations in every epoch
    n, losses, trainings = steps_an_epoch(data), (3.0, 2.9, 3.5, 2.6, 2.7, 2.5), []
    real, begun, stopped_in = rnn_utils.text_loss, RNNTraining.__init__, []

    def text_loss(model, source, args, between):
        found = losses[trainings[-1].epoch] + 1e-3 * real(model, source, args, between)
        if trainings[-1].epoch in stopped_in:
            trainings[-1].stop.ask(signal.SIGTERM)
        return found

    def noted(self, *args):
        begun(self, *args)
        trainings.append(self)

    monkeypatch.setattr(training_module, "text_loss", text_loss)
    monkeypatch.setattr(RNNTraining, "__init__", noted)
    with monkeypatch.context() as patches:
        Planted(patches, 4 * n + 2)
        straight = train_rnn(config(data, out=str(tmp_path / "straight"), **options))
    assert [row["averaged"] for row in straight.history] == [0, 0, 0, 1, 1, 1]
    stop = MOMENTS[moment](n)
    with monkeypatch.context() as patches:
        first = Planted(patches, 4 * n + 2, signal_after=stop)
        stopped_in += [2] if stop is None else []
        with pytest.raises(RunStopped, match="train rnn --resume"):
            train_rnn(config(data, out=str(tmp_path / "stopped"), **options))
    stopped_in.clear()
    state = load_checkpoint(tmp_path / "stopped", "train-rnn")
    assert state["extra"]["returns"] == ("going back" in moment)
    assert ("t0" in state["optimizer"]["param_groups"][0]) == (moment not in ("in SGD", "before the trigger"))
    assert bool(state["optimizer"]["state"]) == ("averages" in moment or "going back" in moment)
    with monkeypatch.context() as patches:
        Planted(patches, 4 * n + 2).seen = first.seen
        resumed = train_rnn(TrainRNNConfig(), resume=tmp_path / "stopped")
    states = [load_checkpoint(tmp_path / name, "train-rnn") for name in ("straight", "stopped")]
    same(*states)
    assert states[0]["extra"]["returns"] == 0  # the last epoch is the best
    same(*(torch.load(run.weights, weights_only=True) for run in (straight, resumed)))


def test_a_killed_training_goes_on_to_the_same_bits(data, tmp_path, undrawn):
    """By SIGKILL, wherever it strikes."""
    options = {"data": data, "batch_size": 4, "epochs": 4, "bptt": 20, "nonmono": 1, "lr": 8.0, **SIZES}
    options |= {"log_interval": 1, "checkpoint_seconds": 0.0}
    command = [sys.executable, "-c", (
        "import sys\n"
        "from dartsfast.train import TrainRNNConfig, train_rnn\n"
        f"train_rnn(TrainRNNConfig(**{options!r}, out={str(tmp_path / 'killed')!r}))\n"
    )]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 3/4"):
            break
    process.kill()
    process.communicate()
    train_rnn(TrainRNNConfig(checkpoint_seconds=0.0), resume=tmp_path / "killed")
    train_rnn(TrainRNNConfig(**options, out=str(tmp_path / "straight")))
    same(*(load_checkpoint(tmp_path / name, "train-rnn") for name in ("straight", "killed")))
