"""Cells to export, and what tests of exports share."""

import os
import subprocess
import sys

import pytest

from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.cnn.operations import OPS
from dartsfast.export import export_network, source
from dartsfast.rnn import genotypes as rnn_genotypes
from dartsfast.train import TestCNNConfig

SIZES = {"init_channels": 4, "layers": 5}
NAMES = [name for name in OPS if name != "noise"]  # which is searched among, and not trained
# All operations, in the reduction cell strided and not; nodes that nothing reads.
ALL = cnn_genotypes.Genotype(
    normal=[(name, k % 3) for k, name in enumerate(NAMES)] + [("skip_connect", 6), ("none", 0)],
    normal_concat=[3, 2, 7],
    reduce=[(name, k % 2) for k, name in enumerate(NAMES)] + [(name, 2) for name in NAMES],
    reduce_concat=[4, 11, 5, 7],
)
# A line of outputs that is too long for one.
LONG = cnn_genotypes.Genotype(
    normal=[("max_pool_3x3", 0)] * 40, normal_concat=range(2, 22), reduce=[("skip_connect", 1)] * 2,
    reduce_concat=[2],
)  # fmt: skip
EVERY = rnn_genotypes.Genotype(
    recurrent=[("tanh", 0), ("relu", 1), ("sigmoid", 0), ("identity", 2), ("relu", 3)], concat=[5, 1, 4]
)
CELLS = {
    "cnn": {"all": ALL, "long": LONG, **{n: getattr(cnn_genotypes, n) for n in ("AmoebaNet", "DARTS_V1")}},
    "rnn": {"every": EVERY, **{n: getattr(rnn_genotypes, n) for n in ("ENAS", "DARTS_V1")}},
}


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    monkeypatch.setattr(source, "WORDS", 11)
    monkeypatch.setattr(source, "UNITS", 6)


def written(what, formats, out, **options):
    """Export; return the paths and the differences."""
    found = export_network(what, formats, out=str(out), **options)
    assert all(one.path.exists() for one in found)
    return [one.path for one in found], [one.difference for one in found]


def small(genotype, out):
    """Write a cell's plain file, checked on a small network."""
    of_cnn = isinstance(genotype, cnn_genotypes.Genotype)
    options = {"network": TestCNNConfig(**SIZES), "classes": 3} if of_cnn else {}
    (path,), difference = written(repr(genotype), ["module"], out, **options)
    assert difference == [0.0]
    return path


def python(code, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
