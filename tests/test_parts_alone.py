"""Operations of ours in networks of others: it is said once, and only where kernels could compute them."""

import copy
import pickle
import warnings
from weakref import WeakSet

import pytest
import torch
from op_backends import needs_kernels
from torch import nn

from dartsfast import accelerate, restore
from dartsfast.cnn.genotypes import DARTS_V2
from dartsfast.cnn.model import NetworkCIFAR
from dartsfast.cnn.model_search import Cell, MixedOp, Network
from dartsfast.cnn.operations import OPS, SepConv
from dartsfast.cnn.spaces import SPACES
from dartsfast.methods.pc_darts import PCDARTS
from dartsfast.modules import alone

MESSAGE = "operations of dartsfast.cnn run as ordinary modules.*dartsfast.accelerate"


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(alone, "_seen", WeakSet())
    alone._warn.cache_clear()
    yield
    alone._warn.cache_clear()


class Mixed(nn.Module):
    """Somebody's own mixed operation, of operations that he takes from here."""

    def __init__(self, C, stride=1):
        super().__init__()
        names = ("skip_connect", "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5", "sep_conv_5x5")
        self.ops = nn.ModuleList(OPS[name](C, stride, False) for name in names)

    def forward(self, x):
        return sum(op(x) for op in self.ops) / len(self.ops)


def own(edges=3):
    return nn.Sequential(*(Mixed(4) for _ in range(edges)))


def said(network, *inputs, times=2):
    """Return the warnings of ``times`` passes, with gradients unless the caller has turned them off."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(times):
            network(*inputs)
    return [str(one.message) for one in found]


IMAGES = torch.zeros(2, 4, 8, 8)


@needs_kernels
def test_a_network_of_ones_own_is_told_once():
    network = own()
    with pytest.warns(UserWarning, match=MESSAGE):
        network(IMAGES)
    assert said(network, IMAGES) == said(copy.deepcopy(network), IMAGES) == said(own(), IMAGES) == []


@needs_kernels
@pytest.mark.parametrize(
    "network, inputs",
    [
        (nn.ModuleList([MixedOp(4, 1), MixedOp(4, 1)]), (torch.ones(8),)),
        (nn.ModuleList([Cell(4, 4, 4, 4, 4, False, False)]), (IMAGES, torch.ones(14, 8))),
    ],
    ids=["MixedOp", "Cell"],
)
def test_parts_of_ours_that_mix_are_parts_too(network, inputs):
    class Around(nn.Module):
        def forward(self, x):
            return [part(x, *inputs) for part in network]

    (message,) = said(Around(), IMAGES)
    assert message.startswith("operations of dartsfast.cnn run as ordinary modules")


def search(backend, **options):
    return Network(4, 3, 2, nn.CrossEntropyLoss(), backend=backend, **options)


@needs_kernels
@pytest.mark.parametrize(
    "build",
    [
        lambda: search("reference"),
        lambda: search("cpu"),
        lambda: search("reference", skip_zero=True),
        lambda: search("reference", primitives=SPACES["nasbench201"]),
        lambda: search("reference").new(),
        lambda: pickle.loads(pickle.dumps(copy.deepcopy(search("reference")))),
        lambda: PCDARTS(4, 3, 2, nn.CrossEntropyLoss(), share=2),
    ],
    ids=["reference", "cpu", "skip_zero", "nasbench201", "new", "pickled", "pc-darts"],
)
def test_networks_of_ours_are_not_told(build):
    assert said(build(), torch.zeros(2, 3, 8, 8)) == []


@needs_kernels
def test_found_cells_and_cells_that_say_what_computes_them_are_not_told():
    found = NetworkCIFAR(4, 3, 4, False, DARTS_V2)
    found.drop_path_prob = 0.0
    assert said(found, torch.zeros(2, 3, 32, 32)) == []
    cell = Cell(4, 4, 4, 4, 4, False, False, backend="reference")
    assert said(cell, IMAGES, IMAGES, torch.ones(14, 8)) == []


@needs_kernels
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_accelerated_network_is_not_told(backend):
    network = own()
    accelerate(network, backend=backend)
    assert said(network, IMAGES) == said(network, torch.zeros(2, 4, 64, 64)) == []
    assert said(restore(network) or network, IMAGES) == []


@needs_kernels
def test_where_kernels_would_not_serve_nothing_is_said():
    assert said(own(1), IMAGES) == []  # too few
    with torch.no_grad():
        assert said(own(), IMAGES) == []
    assert said(own().to(torch.bfloat16), IMAGES.to(torch.bfloat16)) == []
    assert said(own().to("meta"), IMAGES.to("meta")) == []


def test_a_network_without_kernels_is_not_told(monkeypatch):
    monkeypatch.setattr(alone, "candidates", lambda device, dtype: [])
    assert said(own(), IMAGES) == []


def test_parts_can_still_be_scripted_traced_and_exported():
    op = SepConv(4, 4, 3, 1, 1).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them
        made = [torch.jit.script(op), torch.jit.trace(op, IMAGES)]
    made.append(torch.export.export(op, (IMAGES,)).module())
    assert all(torch.equal(one(IMAGES), op(IMAGES)) for one in made)
