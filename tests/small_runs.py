"""Searches of seconds, and what tests of their runs share."""

import contextlib
import hashlib
import signal
from unittest import mock

import torch
from small_data import image_folder, text_folder

from dartsfast.errors import RunStopped
from dartsfast.search import CNNConfig, RNNConfig, search_cnn
from dartsfast.search.cnn import CNNSearch


def cnn_options(tmp_path):
    data = image_folder(tmp_path / "images")
    sizes = {"image_size": 8, "init_channels": 2, "layers": 3, "batch_size": 3}
    return {"data": f"imagefolder:{data}", "epochs": 2, "report_freq": 1, **sizes}


def rnn_options(tmp_path):
    data = text_folder(tmp_path / "text")
    sizes = {"emsize": 8, "nhid": 8, "nhidlast": 8}
    return {"data": str(data), "batch_size": 4, "bptt": 40, "epochs": 2, "log_interval": 1, **sizes}


OPTIONS = {"cnn": cnn_options, "rnn": rnn_options}
CONFIG = {"cnn": CNNConfig, "rnn": RNNConfig}


def same(left, right, path="state"):
    """Assert that two checkpoints are equal to the bit, all but the clock."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            if key not in ("seconds", "loader_share", "out"):
                same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            same(a, b, f"{path}[{i}]")
    else:
        assert left == right, path


def digests(folder):
    """Return a digest of every file below ``folder``."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def begun(search, iterations=2):
    """Run some iterations of a new search and return its state."""
    for _, _ in zip(range(iterations), search.iterations(), strict=False):
        pass
    return search.state()


def stopped_and_resumed(options, out, moments):
    """Run a CNN search in ``out`` that a signal stops at every (epoch, iteration); return its result."""
    original, resume = CNNSearch.iteration, None
    for moment in moments:

        def iteration(search, *batch, moment=moment):
            if (search.epoch, search.step) == moment:
                signal.raise_signal(signal.SIGTERM)
            return original(search, *batch)

        with mock.patch.object(CNNSearch, "iteration", iteration), contextlib.suppress(RunStopped):
            search_cnn(CNNConfig() if resume else CNNConfig(**options, out=str(out)), resume=resume)
            raise AssertionError(f"it was not stopped at {moment}")
        resume = out
    return search_cnn(CNNConfig(), resume=out)
