"""What old scripts expect of the RNN."""

import pytest
import torch
from test_fused_rnn import one_thread as one_thread  # a fixture
from torch import nn

from dartsfast.rnn.model import INITRANGE
from dartsfast.rnn.model_search import RNNModelSearch


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
