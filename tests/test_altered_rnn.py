"""What old scripts expect of the RNN."""

import pytest
import torch
from test_fused_rnn import VOCABULARY, text
from test_fused_rnn import one_thread as one_thread  # a fixture
from torch import nn

from dartsfast.rnn import genotypes
from dartsfast.rnn.model import INITRANGE, DARTSCell, RNNModel
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.rnn.utils import mask2d


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_seed_gives_the_weights_of_the_original(backend):
    torch.manual_seed(2)
    model = RNNModelSearch(50, 12, 12, 12, backend=backend)
    torch.manual_seed(2)
    nn.Embedding(50, 12)
    W0, *Ws = (torch.empty(n, 24).uniform_(-INITRANGE, INITRANGE) for n in (24, *[12] * 8))
    nn.Linear(12, 50)
    torch.empty(50, 12).uniform_()
    tied = torch.empty(50, 12).uniform_(-INITRANGE, INITRANGE)
    alphas = torch.randn(36, 5).mul_(1e-3)
    assert torch.equal(model.encoder.weight, tied) and model.decoder.weight is model.encoder.weight
    assert not model.decoder.bias.any()
    assert torch.equal(model.weights, alphas)
    cell = model.rnns[0]
    assert all(torch.equal(a, b) for a, b in zip((cell._W0, *cell._Ws), (W0, *Ws), strict=True))


def test_a_cell_class_of_four_arguments():
    class Mine(DARTSCell):
        def __init__(self, ninp, nhid, dropouth, dropoutx):
            super().__init__(ninp, nhid, dropouth, dropoutx, genotypes.DARTS_V1)

    models = []
    for options in ({"cell_cls": Mine}, {"genotype": genotypes.DARTS_V1}):
        torch.manual_seed(0)
        models.append(RNNModel(VOCABULARY, 12, 12, 12, **options).eval())
    x = text()[0]
    ours, theirs = (model(x, model.init_hidden(6))[0] for model in models)
    assert torch.equal(ours, theirs)
    assert [model.cell_cls for model in models] == [Mine, DARTSCell]


def test_a_mask_for_the_cpu_as_old_scripts_ask_for_it():
    torch.manual_seed(0)
    mask = mask2d(3, 4, 0.5, cuda=False)
    torch.manual_seed(0)
    assert torch.equal(mask, torch.floor(torch.rand(3, 4) + 0.5) / 0.5)
    assert mask2d(3, 4, 0.5, False).shape == (3, 4)
