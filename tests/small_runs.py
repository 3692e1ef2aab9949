"""Searches of seconds, and what tests of their runs share."""

import hashlib

import torch
from small_data import image_folder, text_folder

from dartsfast.search import CNNConfig, RNNConfig


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
