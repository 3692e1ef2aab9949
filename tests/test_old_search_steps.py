"""What old scripts do with parts of the search network: steps, mixing weights and files of their own."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_model_search import MODELS
from torch import nn

from dartsfast.backends import availability
from dartsfast.cnn import architect as cnn_architect
from dartsfast.cnn import model_search
from dartsfast.cnn.model_search import Network
from dartsfast.rnn import architect as rnn_architect
from dartsfast.rnn.model_search import RNNModelSearch

_cpu = availability("cpu")
needs_cpu = pytest.mark.skipif(not _cpu.available, reason=_cpu.reason)
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]


def network(backend, kind=Network, dtype=torch.float64):
    torch.manual_seed(0)
    model = kind(4, 10, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2, backend=backend).to(dtype)
    with torch.no_grad():
        for alpha in model.arch_parameters():
            alpha.copy_(torch.randn(alpha.shape))
    return model


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.randint(10, (4,), generator=generator)


def results(model, dtype=torch.float64):
    loss = model._loss(*batch(dtype))
    leaves = [*model.parameters(), *model.arch_parameters()]
    return [loss, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_the_weights_can_be_viewed_as_one_vector(backend):
    """As the original's _concat does, which scripts with a step of their own have copied."""
    model = network(backend)
    gradients = torch.autograd.grad(model._loss(*batch()), list(model.parameters()))
    vector = torch.cat([g.view(-1) for g in gradients])
    wanted = torch.cat([g.flatten() for g in results(network("reference"))[1 : 1 + len(gradients)]])
    torch.testing.assert_close(vector, wanted, rtol=1e-9, atol=1e-12)


WEIGHTS = {
    "rows": list,
    "rows of numbers": torch.Tensor.tolist,
    "rows of scalars": lambda weights: [list(row) for row in weights],
    "rows of any length": lambda weights: [row[: 4 + i] for i, row in enumerate(weights)],
    "choices": lambda weights: F.one_hot(weights.argmax(-1), weights.shape[-1]),
    "another precision": torch.Tensor.float,
}


def own_forward(mix):
    """A network whose cells are given ``mix`` of their mixing weights."""

    class Mine(Network):
        def forward(self, input):
            s0 = s1 = self.stem(input)
            for cell in self.cells:
                alphas = self.alphas_reduce if cell.reduction else self.alphas_normal
                s0, s1 = s1, cell(s0, s1, mix(F.softmax(alphas, dim=-1)))
            return self.classifier(self.global_pooling(s1).flatten(1))

    return Mine


@needs_cpu
@pytest.mark.filterwarnings("ignore:edges run as ordinary modules.*their weights are a list")
@pytest.mark.parametrize("kind", WEIGHTS)
def test_cells_take_the_mixing_weights_that_the_originals_took(kind):
    model = own_forward(WEIGHTS[kind])
    ours, theirs = (results(network(backend, model)) for backend in ("cpu", "reference"))
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


class Squared(model_search.MixedOp):
    def forward(self, x, weights):
        return super().forward(x, weights).square()


class SquaredToo(Squared):
    def __init__(self, C, stride):
        super().__init__(C, stride)


class Halved(model_search.Cell):
    def __init__(self, steps, multiplier, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__(steps, multiplier, C_prev_prev, C_prev, C, reduction, reduction_prev)

    def forward(self, s0, s1, weights):
        return super().forward(s0, s1, weights) / 2


@needs_cpu
@pytest.mark.filterwarnings("ignore:edges run as ordinary modules.*has hooks or a forward")
@pytest.mark.parametrize(("name", "kind"), [("MixedOp", Squared), ("MixedOp", SquaredToo), ("Cell", Halved)])
def test_classes_that_a_script_puts_in_the_place_of_ours_compute(name, kind, monkeypatch):
    """With the constructors of the original."""
    plain = results(network("reference"))
    monkeypatch.setattr(model_search, name, kind)
    ours, theirs = (network(backend) for backend in ("cpu", "reference"))
    assert {m._backend for m in ours.cells} == {"cpu"} and ours.new().alphas_normal is not None
    for got, wanted in zip(results(ours), results(theirs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-11)
    assert not torch.isclose(results(theirs)[0], plain[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_alphas_from_numpy_are_float64_beside_float32_weights(backend):
    model, same = network(backend, dtype=torch.float32), network("reference")
    values = [alpha.detach().clone() for alpha in same.arch_parameters()]
    model._arch_parameters = [torch.from_numpy(v.numpy()).requires_grad_() for v in values]
    got, wanted = results(model, torch.float32), results(same)
    assert got[-1].dtype == torch.float64
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS[:1] + [pytest.param("auto", marks=needs_cpu)])
@pytest.mark.filterwarnings("ignore:backend cpu not used")
def test_a_forward_of_ones_own_under_autocast(backend):
    model = network(backend, own_forward(lambda weights: weights), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, *gradients = results(model, torch.float32)
    assert abs(loss - results(network("reference"))[0]) < 0.1
    assert all(g.dtype == torch.float32 for g in gradients)


@needs_cpu
def test_a_stem_that_runs_as_a_module_under_autocast():
    model = network("cpu", dtype=torch.float32)
    model.stem.register_forward_hook(lambda *args: None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, *_ = results(model, torch.float32)
    assert abs(loss - results(network("reference"))[0]) < 0.1


@pytest.mark.parametrize("kind", MODELS)
def test_alphas_are_copied_and_saved_as_a_list_without_the_model(kind, tmp_path):
    model = MODELS[kind]()
    alphas = model.arch_parameters()
    torch.save({"alphas": alphas, "epoch": 3}, tmp_path / "alphas.pt")
    assert (tmp_path / "alphas.pt").stat().st_size < 4096 + sum(a.nbytes for a in alphas)
    for others in (copy.deepcopy(alphas), torch.load(tmp_path / "alphas.pt")["alphas"]):
        assert type(others) is list
        assert all(torch.equal(a, b) and a is not b for a, b in zip(alphas, others, strict=True))
        others[0] = torch.zeros_like(others[0])
        assert model.arch_parameters()[0] is alphas[0]
    copied = copy.copy(alphas)
    assert copied[0] is alphas[0] and type(copied) is list


@pytest.mark.parametrize("architect", [cnn_architect, rnn_architect])
def test_concat_is_one_vector(architect):
    tensors = [torch.arange(6.0).view(2, 3).t(), torch.tensor(7.0), torch.zeros(1, 0)]
    assert architect._concat(iter(tensors)).tolist() == [0, 3, 1, 4, 2, 5, 7]


@pytest.mark.parametrize(("norm", "factor"), [(1.0, 0.2), (10.0, 2.0)])
def test_clip_scales_in_place_and_returns_the_factor(norm, factor):
    """Also the factor above one, which the original's implicit term takes."""
    gradients = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    assert rnn_architect._clip(gradients, norm) == pytest.approx(factor, rel=1e-5)
    wanted = min(1.0, factor)
    torch.testing.assert_close(gradients, [torch.tensor([3 * wanted]), torch.tensor([[0, 4 * wanted]])])


def second_order(model, train_loss, valid_loss, eta, staying):
    """Return the alphas' gradient in the original's words, on a copy of the model."""
    weights, moved = list(model.parameters()), copy.deepcopy(model)
    step = torch.autograd.grad(train_loss(model), weights)
    with torch.no_grad():
        for name, p, g in zip(dict(model.named_parameters()), moved.parameters(), step, strict=True):
            p.sub_(eta * g if name not in staying else 0)
    valid_loss(moved).backward()
    vector = [p.grad for p in moved.parameters()]
    R = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
    ahead, back = [], []
    for sign, found in ((1, ahead), (-1, back)):
        with torch.no_grad():
            for p, v in zip(weights, vector, strict=True):
                p.add_(sign * R * v)
        found += torch.autograd.grad(train_loss(model), model.arch_parameters())
        with torch.no_grad():
            for p, v in zip(weights, vector, strict=True):
                p.sub_(sign * R * v)
    direct = [alpha.grad for alpha in moved.arch_parameters()]
    return [d - eta * (a - b) / (2 * R) for d, a, b in zip(direct, ahead, back, strict=True)]


def with_parameters(model):
    """Return the model with alphas that are its parameters, as in forks for DataParallel."""
    names = list(model._arch_names)
    for name in names:
        setattr(model, name, nn.Parameter(getattr(model, name).detach()))
    model._arch_parameters = [getattr(model, name) for name in names]
    assert {id(a) for a in model.arch_parameters()} <= {id(p) for p in model.parameters()}
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("alphas", [with_parameters, lambda model: model], ids=["parameters", "beside"])
@pytest.mark.parametrize("unrolled", [False, True])
def test_an_alpha_step_where_the_alphas_are_parameters_and_where_they_are_not(unrolled, alphas, backend):
    args = SimpleNamespace(momentum=0.0, weight_decay=0.0, arch_learning_rate=0.1, arch_weight_decay=0.0)
    model, same = (alphas(network(b)) for b in (backend, "reference"))
    (x, y), eta = batch(), 0.1
    losses = (lambda m: m._loss(x, y)), (lambda m: m._loss(x.flip(0), y))
    if unrolled:
        wanted = second_order(same, *losses, eta, staying=())
    else:
        wanted = torch.autograd.grad(losses[1](same), same.arch_parameters())
    before = [alpha.detach().clone() for alpha in model.arch_parameters()]
    architect = cnn_architect.Architect(model, args)
    architect.step(x, y, x.flip(0), y, eta, torch.optim.SGD(model.parameters(), eta), unrolled)
    for alpha, gradient, start in zip(model.arch_parameters(), wanted, before, strict=True):
        torch.testing.assert_close(alpha.grad, gradient, rtol=1e-6, atol=1e-10)
        assert (alpha != start).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_alphas_that_are_parameters_stay_in_the_rnns_virtual_step(backend):
    """As in the original, where they are loaded a second time, as the cell's, at their old value."""
    args = SimpleNamespace(clip=1e6, wdecay=0.0, arch_lr=0.1, arch_wdecay=0.0)
    models = []
    for kind in (backend, "reference"):
        torch.manual_seed(0)
        models.append(
            with_parameters(RNNModelSearch(12, 8, 8, 8, 0.0, 0.0, 0.0, 0.0, 0.0, backend=kind).double())
        )
    model, same = models
    text, after, eta = torch.randint(12, (5, 4)), torch.randint(12, (20,)), 2.0
    hidden = model.init_hidden(4)
    losses = (lambda m: m._loss(hidden, text, after)[0]), (lambda m: m._loss(hidden, text.flip(0), after)[0])
    wanted = second_order(same, *losses, eta, staying=["weights"])
    architect = rnn_architect.Architect(model, args, preset="paper")
    sgd = torch.optim.SGD(model.parameters(), eta)
    architect.step(hidden, text, after, hidden, text.flip(0), after, sgd, unrolled=True)
    torch.testing.assert_close(model.weights.grad, *wanted, rtol=1e-6, atol=1e-10)
