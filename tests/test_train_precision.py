"""Trainings in half precision, in other memory layouts, and compiled."""

import math
import signal
from functools import partial

import pytest
import torch
from small_data import image_folder

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from small_training import config, in_float64

from dartsfast.errors import RunStopped
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.runs.interrupts import StopAsked
from dartsfast.train import TrainCNNConfig, train_cnn
from dartsfast.train.cnn import CNNTraining


@pytest.fixture
def data(tmp_path):
    """Six images of 32x32 a class in training, two held out."""
    return f"imagefolder:{image_folder(tmp_path / 'images', train=6, side=32)}"


def test_a_first_step_that_float16_skips_can_be_gone_on_from(data, tmp_path, monkeypatch, undrawn):
    def interrupted(self):
        self.model.stem[0].weight.register_hook(lambda gradient: gradient * math.inf)
        yield next(iterations(self))
        self.stop.ask(signal.SIGTERM)
        self.stop.check()

    iterations = CNNTraining.iterations
    with monkeypatch.context() as patches, pytest.raises(RunStopped):
        patches.setattr(CNNTraining, "iterations", interrupted)
        train_cnn(config(data, precision="float16", out=str(tmp_path / "run"), epochs=1))
    assert load_checkpoint(tmp_path / "run", "train-cnn")["optimizer"]["state"] == {}
    assert len(train_cnn(TrainCNNConfig(), resume=tmp_path / "run").history) == 1


def test_an_epoch_without_a_step_in_float16_is_said(data, tmp_path, monkeypatch, capsys, undrawn):
    """Of the first epoch every gradient is infinite; a stop while it is tested changes nothing."""
    iterations = CNNTraining.iterations

    def infinite(self):
        self.model.stem[0].weight.register_hook(lambda g: g * math.inf if self.epoch == 0 else g * 0)
        return iterations(self)

    def stop(self, *given, **how):
        self.stop.ask(signal.SIGTERM)
        raise StopAsked

    monkeypatch.setattr(CNNTraining, "iterations", infinite)
    options = {"precision": "float16", "out": str(tmp_path / "run")}
    with monkeypatch.context() as patches, pytest.raises(RunStopped):
        patches.setattr(CNNTraining, "finish_epoch", stop)
        train_cnn(config(data, **options))
    assert load_checkpoint(tmp_path / "run", "train-cnn")["extra"]["steps"] == 0
    train_cnn(TrainCNNConfig(), resume=tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if "none of" in line]
    (line,) = said
    assert line.startswith("epoch 1: none of 5 steps was taken") and "scaled by 2048 by now" in line
    assert "--precision bfloat16" in line


def test_steps_are_counted_over_a_stop(data, tmp_path, monkeypatch, capsys, undrawn):
    """An epoch that was stopped in the middle has steps, if none after the stop."""
    iterations = CNNTraining.iterations

    def interrupted(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)  # such that the first step is taken
        yield next(iterations(self))
        self.stop.ask(signal.SIGTERM)
        self.stop.check()

    def infinite(self):
        self.model.stem[0].weight.register_hook(lambda g: g * math.inf)
        return iterations(self)

    for stage, patched in (("begun", interrupted), ("resumed", infinite)):
        monkeypatch.setattr(CNNTraining, "iterations", patched)
        if stage == "resumed":
            train_cnn(TrainCNNConfig(), resume=tmp_path / "run")
        else:
            with pytest.raises(RunStopped):
                train_cnn(config(data, precision="float16", epochs=1, out=str(tmp_path / "run")))
            assert load_checkpoint(tmp_path / "run", "train-cnn")["extra"]["steps"] == 1
    assert "none of" not in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_is_that_of_the_convolutions(data, precision):
    training = CNNTraining(config(data, precision=precision))
    seen = []
    training.model.stem[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    next(training.iterations())
    assert seen == [getattr(torch, precision)]


def test_channels_last_and_compiled_networks_compute_the_same(data, monkeypatch):
    """What torch.compile makes of the network, forward and backward, less the compiler of kernels.

    It makes three at most, without paths that are dropped and with them, not one for every epoch's share.
    """
    options = {"layers": 1, "epochs": 6, "drop_path_prob": 0.6}
    plain = in_float64(CNNTraining(config(data, **options)))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    counters = torch._dynamo.utils.counters
    counters.clear()
    other = in_float64(CNNTraining(config(data, channels_last=True, compile=True, **options)))
    for training in (plain, other):
        torch.manual_seed(0)
        for training.epoch in range(6):
            training.step = 0
            next(training.iterations())
    assert (
        2 <= counters["stats"]["unique_graphs"] <= 3
        and counters["frames"]["total"] == counters["frames"]["ok"]
    )
    assert other.model.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(other.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
