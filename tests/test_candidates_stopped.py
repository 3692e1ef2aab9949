"""Signals that strike a competition: between two candidates, and while one is trained."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import cnn_options

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.candidates import RandomCNNConfig, compete, random_cnn
from dartsfast.errors import RunStopped
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.train.cnn import CNNTraining

pytestmark = pytest.mark.usefixtures("undrawn")


def small(tmp_path):
    """Return the options of a competition of one cell, trained for an epoch."""
    options = {**cnn_options(tmp_path), "epochs": 1, "candidates": 1}
    return RandomCNNConfig(**options, out=str(tmp_path / "out"))


@pytest.fixture
def default_handlers():
    """Begin with the handlers of a new process, and find them again at the end."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(each, signal.SIG_DFL) for each in signals]
    yield
    left = [signal.signal(each, kept) for each, kept in zip(signals, before, strict=True)]
    assert left == [signal.SIG_DFL, signal.SIG_DFL]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["_say", "draw_genotype"])
def test_a_signal_between_candidates_says_how_to_go_on(
    tmp_path, monkeypatch, default_handlers, signum, where
):
    """Where no run is there to save anything; also while the table of all is made."""
    config = small(tmp_path)
    with monkeypatch.context() as patches, pytest.raises(RunStopped) as stopped:
        patches.setattr(compete, where, lambda *given: signal.raise_signal(signum))
        random_cnn(config)
    words = (
        f"stopped by {signum.name} with 1 of 1 candidates done; what is done is kept. Go on with: dartsfast"
    )
    assert str(stopped.value) == f"{words} random cnn --resume {config.out}"
    assert stopped.value.signum == signum
    assert random_cnn(RandomCNNConfig(), resume=config.out).best == "0"


def test_a_run_within_a_competition_takes_the_signal(tmp_path, monkeypatch, default_handlers):
    """It saves a checkpoint, of the moment, and goes on to the same bits."""
    config = small(tmp_path)
    whole = random_cnn(replace(config, out=str(tmp_path / "whole")))
    iterations = CNNTraining.iterations

    def struck(self):
        for found in iterations(self):
            signal.raise_signal(signal.SIGTERM)
            yield found

    with monkeypatch.context() as patches, pytest.raises(RunStopped, match="by SIGTERM with 0 of 1"):
        patches.setattr(CNNTraining, "iterations", struck)
        random_cnn(config)
    state = load_checkpoint(Path(config.out) / "0", "train-cnn")
    assert (state["epoch"], state["step"]) == (0, 1)
    assert random_cnn(RandomCNNConfig(), resume=config.out).candidates == whole.candidates
