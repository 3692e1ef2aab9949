"""Cells as plain files: the same bits without this package, no more than a cell uses, formatted."""

import re
import subprocess
import sys

import pytest
import torch
from exported import ALL, CELLS, EVERY, python, small
from exported import few_words as few_words  # fixtures

from dartsfast.cnn.model import NetworkCIFAR
from dartsfast.cnn.operations import OPS
from dartsfast.export import module_cnn, module_rnn
from dartsfast.export.text import listed, quoted
from dartsfast.rnn import genotypes as rnn_genotypes
from dartsfast.rnn.model import RNNModel
from dartsfast.rnn.utils import ACTIVATIONS


def case(kind, genotype):
    """Return what a plain network computes from, and the network that must compute the same."""
    torch.manual_seed(0)
    if kind == "cnn":
        sizes, network = (4, 3, 5), NetworkCIFAR(4, 3, 5, False, genotype)
        inputs = (torch.randn(3, 3, 16, 16, dtype=torch.float64),)
    else:
        sizes = (11, 6)
        network = RNNModel(11, 6, 6, 6, *[0.0] * 5, genotype=genotype)
        inputs = (torch.randint(11, (4, 3)), torch.randn(1, 3, 6, dtype=torch.float64))
    return sizes, network.double(), inputs


def computed(network, inputs):
    """Return outputs, gradients and the state after a training pass."""
    network.train()
    found = network(*inputs)
    outputs = found[0] if isinstance(found, tuple) else found
    outputs.square().sum().backward()
    return {
        "outputs": outputs.detach(),
        **{f"gradient of {name}": p.grad for name, p in network.named_parameters()},
        **{f"state {name}": value for name, value in network.state_dict().items()},
    }


ELSEWHERE = """if True:
    import importlib.util, sys
    import torch
    sys.modules["dartsfast"] = None  # importing it raises
    results = {}
    for path, sizes, state, inputs in torch.load("cases.pt"):
        spec = importlib.util.spec_from_file_location("plain", path)
        plain = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(plain)
        network = plain.Network(*sizes).double()
        network.load_state_dict(state)
        network.train()
        found = network(*inputs)
        outputs = found[0] if isinstance(found, tuple) else found
        outputs.square().sum().backward()
        results[path] = {
            "outputs": outputs.detach(),
            **{f"gradient of {name}": p.grad for name, p in network.named_parameters()},
            **{f"state {name}": value for name, value in network.state_dict().items()},
        }
    torch.save(results, "results.pt")
"""


@pytest.mark.parametrize("kind", ["cnn", "rnn"])
def test_plain_files_compute_the_same_bits_without_dartsfast(tmp_path, kind):
    cases, wanted = [], {}
    for name, genotype in CELLS[kind].items():
        path = str(small(genotype, tmp_path / name))
        sizes, network, inputs = case(kind, genotype)
        cases.append((path, sizes, {n: v.clone() for n, v in network.state_dict().items()}, inputs))
        wanted[path] = computed(network, inputs if kind == "cnn" else (inputs[0], [inputs[1]]))
    torch.save(cases, tmp_path / "cases.pt")
    python(ELSEWHERE, tmp_path)
    found = torch.load(tmp_path / "results.pt")
    for path, values in wanted.items():
        assert list(found[path]) == list(values)
        for name, value in values.items():
            assert (value is None) == (found[path][name] is None), name
            assert value is None or torch.equal(found[path][name], value), f"{path}: {name}"


def test_every_operation_can_be_written():
    assert {*module_cnn.OPS, "skip_connect"} == set(OPS) - {"noise"} == {name for name, _ in ALL.normal}
    assert set(module_rnn.ACTIVATIONS) == set(ACTIVATIONS) == {name for name, _ in EVERY.recurrent}


def test_files_have_what_their_cells_use_and_no_more(tmp_path):
    used = {"ReLUConvBN", "FactorizedReduce", "NormalCell", "ReductionCell", "Network"}
    everything = {"Zero", "SepConv", "DilConv", "Conv7x1", "Conv"}
    for name, own in {"all": everything, "DARTS_V1": {"SepConv"}}.items():
        text = small(CELLS["cnn"][name], tmp_path / name).read_text()
        assert set(re.findall(r"^class (\w+)", text, re.M)) == used | own
    assert "def identity" not in small(rnn_genotypes.ENAS, tmp_path / "enas").read_text()


ODD = ['a "b"', "it's", "é π", "x\\y", "", "line\nbreak", "\udcff"]


@pytest.mark.parametrize("width", [88, 110])
def test_formatters_leave_files_as_they_are(tmp_path, width):
    pytest.importorskip("ruff")
    for kind, cells in CELLS.items():
        for name, genotype in cells.items():
            small(genotype, tmp_path / f"{kind}_{name}")
    lists = [listed("NAMES", map(quoted, ODD)), *(listed("N", ["1"] * n, 4 * (n % 2)) for n in range(20, 40))]
    lists = [f"if True:\n{line}" if line.startswith(" ") else line for line in lists]
    (tmp_path / "lists.py").write_text("\n".join(lists) + "\n")
    exec(lists[0], namespace := {})
    assert namespace["NAMES"] == ODD
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", f"--line-length={width}", "."]
    done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
