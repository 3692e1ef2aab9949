"""Trainings of recurrent cells of a second, for tests."""

import pytest
import torch
from small_data import text_folder

from dartsfast.train import TrainRNNConfig

SIZES = {"emsize": 6, "nhid": 6, "nhidlast": 6}
DROPOUTS = {"dropout": 0.5, "dropouth": 0.25, "dropoutx": 0.4, "dropouti": 0.3, "dropoute": 0.1}


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path):
    """600 words in training, 300 in each of the others, 13 of them different."""
    return str(text_folder(tmp_path / "text"))


def config(data, **options):
    small = {"batch_size": 4, "bptt": 12, "epochs": 2, "lr": 2.0, "log_interval": 1, "seed": 7}
    return TrainRNNConfig(data=data, **{**SIZES, **small, **options})


def run_epoch(training):
    for _ in training.iterations():
        pass
    row = training.finish_epoch()
    training.epoch, training.step, training.sums, training.count = training.epoch + 1, 0, {}, 0.0
    return row
