"""What old scripts do with the RNN: its seed, classes, alphas and alpha step of their own."""

from types import SimpleNamespace

import pytest
import torch
from test_altered_rnn import assert_same, needs_cpu, results
from test_fused_rnn import DRY, VOCABULARY, network, relative, text
from test_fused_rnn import one_thread as one_thread  # a fixture
from torch import nn

from dartsfast.errors import InputError
from dartsfast.rnn import genotypes
from dartsfast.rnn.architect import Architect
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


def test_an_activation_of_ones_own_in_a_discrete_cell():
    class Mine(DARTSCell):
        def _get_activation(self, name):
            return torch.sin if name == "sin" else super()._get_activation(name)

    genotype = genotypes.Genotype([("sin", 0), ("tanh", 1)], [1, 2])
    cell = Mine(3, 4, 0.0, 0.0, genotype).double().eval()
    x, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    state = cell._compute_init_state(x, h, None, None)
    states = []
    for W, function in zip(cell._Ws, (torch.sin, torch.tanh), strict=True):
        c, candidate = (state @ W).chunk(2, dim=-1)
        state = state + c.sigmoid() * (function(candidate) - state)
        states.append(state)
    torch.testing.assert_close(cell.cell(x, h, None, None), sum(states) / 2)


def test_initial_alphas_of_ones_own():
    class Mine(RNNModelSearch):
        def _initialize_arch_parameters(self):
            self.add_arch_parameter("weights", torch.ones(36, 5))

    model = Mine(VOCABULARY, 12, 12, 12)
    assert model.rnns[0].weights is model.weights is model.arch_parameters()[0]
    assert (model.weights == 1).all() and model.weights.requires_grad


def test_alphas_that_start_over():
    model = RNNModelSearch(VOCABULARY, 12, 12, 12).double()
    before = model.weights
    torch.manual_seed(0)
    model._initialize_arch_parameters()
    torch.manual_seed(0)
    assert torch.equal(model.weights, torch.randn(36, 5).mul_(1e-3).double())
    assert model.rnns[0].weights is model.weights is not before
    assert len(model.arch_parameters()) == 1


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
def test_alphas_of_the_cells_own(backend):
    """As in the original the cell reads its own, which those of the model become when they are set."""
    model, own = network(backend), network("reference")
    given = torch.linspace(-1, 1, 180, dtype=torch.float64).view(36, 5).requires_grad_()
    model.rnns[0].weights = given
    own.weights = given
    assert own.rnns[0].weights is given
    *got, of_model = results(model)
    *wanted, of_given = results(own)
    assert_same(got, wanted)
    assert not of_model.any() and of_given.any()


def test_a_mask_for_the_cpu_as_old_scripts_ask_for_it():
    torch.manual_seed(0)
    mask = mask2d(3, 4, 0.5, cuda=False)
    torch.manual_seed(0)
    assert torch.equal(mask, torch.floor(torch.rand(3, 4) + 0.5) / 0.5)
    assert mask2d(3, 4, 0.5, False).shape == (3, 4)


def architect_step(kind, unrolled, model):
    args = SimpleNamespace(wdecay=5e-7, clip=0.25, arch_lr=3e-3, arch_wdecay=0.0)
    sgd = torch.optim.SGD(model.parameters(), 2.0)
    hidden = model.init_hidden(6)
    return kind(model, args).step(hidden, *text(seed=1), hidden, *text(seed=2), sgd, unrolled)


@pytest.mark.parametrize("unrolled", [False, True])
def test_an_alpha_step_of_ones_own(unrolled):
    """The original's methods, with its arguments."""

    class Mine(Architect):
        def _backward_step(self, hidden, input, target):
            loss, hidden = self.model._loss(hidden, input, target)
            (10 * loss).backward()
            return hidden

        def _backward_step_unrolled(self, *args):
            *_, hidden, input, target, eta = args
            assert len(args) == 7 and eta == 2.0
            return self._backward_step(hidden, input, target)

    ours, theirs = network("reference", dropouts=DRY), network("reference", dropouts=DRY)
    for model in (ours, theirs):
        model.weights.grad = torch.ones_like(model.weights)
    (got,), (wanted,) = (
        architect_step(kind, unrolled and kind is Mine, model)[0]
        for kind, model in ((Mine, ours), (Architect, theirs))
    )
    assert relative(ours.weights.grad, 10 * theirs.weights.grad) < 1e-12
    assert relative(got, wanted) < 1e-12 and not got.requires_grad


def test_a_step_of_the_original_that_there_is_not_is_refused():
    class Mine(Architect):
        def _hessian_vector_product(self, vector, hidden, input, target, r=1e-2):
            raise AssertionError

    architect_step(Mine, False, network("reference"))
    with pytest.raises(InputError, match="Mine._hessian_vector_product would never be called"):
        architect_step(Mine, True, network("reference"))
