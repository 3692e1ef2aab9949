"""What old scripts do with the networks: alphas of their own, targets, stems, names."""

import pytest
import torch
import torch.nn.functional as F
from test_model_search import MODELS, network
from torch import nn

from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.cnn import model as discrete
from dartsfast.cnn import model_search, operations
from dartsfast.cnn.model import NetworkCIFAR
from dartsfast.cnn.model_search import MixedOp, Network
from dartsfast.errors import InputError


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("make", [lambda t: t.requires_grad_(), nn.Parameter])
def test_alphas_may_be_set_as_the_originals_list(kind, make):
    model = MODELS[kind]()
    names = list(model._arch_names)
    fresh = [make(torch.randn(a.shape)) for a in model.arch_parameters()]
    model._arch_parameters = fresh
    assert all(getattr(model, name) is a for name, a in zip(names, fresh, strict=True))
    assert not {id(a) for a in fresh} & {id(p) for p in model.parameters()}
    other = make(torch.randn(fresh[0].shape))
    model._arch_parameters[0] = other
    assert getattr(model, names[0]) is model.arch_parameters()[0] is other
    assert torch.equal(model.state_dict()[names[0]], other)
    with pytest.raises(InputError, match=r"_arch_parameters\[\d\] must be a tensor .* attribute first"):
        model._arch_parameters = [*fresh, torch.zeros(3)]
    assert model.arch_parameters()[0] is other  # a refusal leaves everything as it was


@pytest.mark.parametrize("add", ["set", "append", "extend", "+=", "__iadd__"])
def test_more_alphas_join_by_the_names_they_have(add):
    model = network()
    model.betas = torch.randn(5, requires_grad=True)
    if add == "set":
        model._arch_parameters = [model.alphas_normal, model.alphas_reduce, model.betas]
    elif add == "+=":
        model._arch_parameters += [model.betas]
    else:
        getattr(model._arch_parameters, add)(model.betas if add == "append" else [model.betas])
    assert [id(a) for a in model.arch_parameters()] == [
        id(a) for a in (model.alphas_normal, model.alphas_reduce, model.betas)
    ]
    assert model.double().betas.dtype == torch.float64 and model.betas.is_leaf
    assert "betas" in model.state_dict()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda alphas: alphas.pop(), ["alphas_normal"]),
        (lambda alphas: alphas.__delitem__(0), ["alphas_reduce"]),
        (lambda alphas: alphas.remove(alphas[0]), ["alphas_reduce"]),
        (lambda alphas: alphas.reverse(), ["alphas_reduce", "alphas_normal"]),
        (lambda alphas: alphas.clear(), []),
    ],
    ids=["pop", "del", "remove", "reverse", "clear"],
)
def test_alphas_that_are_taken_out_are_trained_no_more(change, wanted):
    model = network()
    change(model._arch_parameters)
    assert [id(a) for a in model.arch_parameters()] == [id(getattr(model, name)) for name in wanted]

    # The network computes with all of them: all are saved, follow it, and go to a new one under their names.
    other = network()
    other.load_state_dict(model.state_dict())
    new = model.new()
    for name in ("alphas_normal", "alphas_reduce"):
        assert torch.equal(getattr(other, name), getattr(model, name))
        assert torch.equal(getattr(new, name), getattr(model, name))
    assert model.double()(torch.randn(2, 3, 8, 8, dtype=torch.float64)).shape == (2, 10)


@pytest.mark.parametrize("make", [lambda t: t.requires_grad_(), nn.Parameter])
def test_the_rnn_computes_with_alphas_that_are_set_in_the_list(make):
    model = MODELS["rnn"]().double()  # in float32 two losses with weights this small can be the same
    tokens = torch.arange(12).view(6, 2) % model.ntoken

    def loss():
        torch.manual_seed(0)
        return model._loss(model.init_hidden(2), tokens, tokens)[0]

    model.weights = make(torch.zeros_like(model.weights))
    before = loss()
    drawn = torch.randn(model.weights.shape, generator=torch.Generator().manual_seed(1))
    alphas = make(drawn.to(model.weights))
    model.arch_parameters()[0] = alphas
    assert model.weights is model.rnns[0].weights is alphas
    assert loss() != before
    (gradient,) = torch.autograd.grad(loss(), model.arch_parameters())
    assert gradient.abs().sum() > 0
    assert not any(p is alphas for p in model.parameters()) and "rnns.0.weights" not in model.state_dict()


def test_a_refused_alpha_does_not_stay_in_the_list():
    alphas = network()._arch_parameters
    with pytest.raises(InputError, match="must be a tensor"):
        alphas.append(torch.zeros(3))
    assert len(alphas) == 2


def test_an_alpha_may_be_put_before_the_others():
    model = network()
    model.betas = torch.randn(5, requires_grad=True)
    model._arch_parameters.insert(0, model.betas)
    assert [id(a) for a in model.arch_parameters()] == [
        id(a) for a in (model.betas, model.alphas_normal, model.alphas_reduce)
    ]


def test_a_subclass_initialises_the_alphas():
    class Zeros(Network):
        def _initialize_alphas(self):
            self.alphas_normal = torch.zeros(14, 8, requires_grad=True)
            self.alphas_reduce = torch.zeros(14, 8, requires_grad=True)
            self._arch_parameters = [self.alphas_normal, self.alphas_reduce]

    model = Zeros(4, 10, 3, nn.CrossEntropyLoss())
    assert all(a.is_leaf and not a.any() for a in model.arch_parameters())
    assert len(model.arch_parameters()) == 2


def test_alphas_are_drawn_anew_on_demand():
    model = network().double()
    torch.manual_seed(7)
    wanted = [1e-3 * torch.randn(5, 8) for _ in range(2)]
    torch.manual_seed(7)
    model._initialize_alphas()
    assert all(torch.equal(a, b.double()) for a, b in zip(model.arch_parameters(), wanted, strict=True))
    assert all(a.is_leaf and a.requires_grad for a in model.arch_parameters())


def test_primitives_of_the_module_count_when_a_network_is_built(monkeypatch):
    monkeypatch.setattr(model_search, "PRIMITIVES", ["none", "skip_connect", "sep_conv_3x3"])
    model = network()
    assert {len(m._ops) for m in model.modules() if isinstance(m, MixedOp)} == {3}
    assert model.alphas_normal.shape == (5, 3)
    assert {name for name, _ in model.genotype().normal} <= {"skip_connect", "sep_conv_3x3"}
    assert len(MixedOp(4, 1)._ops) == 3


def test_a_genotype_of_narrowed_alphas():
    model = network()
    model.alphas_normal = torch.zeros(5, 4, requires_grad=True)
    assert {name for name, _ in model.genotype().normal} == {"max_pool_3x3"}


def soft(logits, targets):
    first, second = targets
    return 0.3 * F.cross_entropy(logits, first) + 0.7 * F.cross_entropy(logits, second)


LABELS = torch.tensor([1, 3, 9])


@pytest.mark.parametrize(
    ("criterion", "target"),
    [
        (nn.CrossEntropyLoss(), torch.tensor([1, -100, 3])),
        (nn.CrossEntropyLoss(ignore_index=255), torch.tensor([1, 255, 3])),
        (nn.CrossEntropyLoss(), torch.full((3, 10), 0.1)),
        (F.mse_loss, torch.full((3, 10), -2.0)),
        (lambda logits, target: F.cross_entropy(logits, target % 10), LABELS + 10),
        (soft, (LABELS, LABELS.flip(0))),
    ],
    ids=["ignored", "ignored 255", "probabilities", "regression", "own criterion", "mixup"],
)
def test_targets_are_the_criterions_affair(criterion, target):
    model = Network(4, 10, 3, criterion, steps=2, multiplier=2)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(model._loss(x, target), criterion(model(x), target))


def test_a_wider_classifier_has_more_labels():
    model = network()
    model.classifier = nn.Linear(model.classifier.in_features, 20)
    assert model._loss(torch.randn(2, 3, 8, 8), torch.tensor([0, 19])).isfinite()
    with pytest.raises(InputError, match="label 255 .* 20 classes"):
        model._loss(torch.randn(2, 3, 8, 8), torch.tensor([0, 255]))


def test_a_stem_of_ones_own_takes_what_it_takes():
    model, gray = network(), torch.randn(2, 1, 8, 8)
    model.stem[0] = nn.Conv2d(1, 12, 3, padding=1, bias=False)
    assert model(gray).shape == (2, 10)
    with pytest.raises(InputError, match=r"\[N, 1, H, W\], got \[2, 3, 8, 8\]"):
        model(torch.randn(2, 3, 8, 8))
    model = network()
    model.stem.register_forward_pre_hook(lambda module, args: (args[0].expand(-1, 3, -1, -1),))
    torch.testing.assert_close(model(gray), network_like(model)(gray.expand(-1, 3, -1, -1)))
    model.stem = nn.Sequential(nn.Unflatten(1, (3, 8)), nn.Conv2d(3, 12, 1))
    assert model(torch.randn(2, 24, 8)).shape == (2, 10)


def network_like(model):
    other = network()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("size", [32, 36, 40])
def test_the_auxiliary_head_takes_what_its_layers_take(size):
    model = NetworkCIFAR(4, 10, 3, True, cnn_genotypes.DARTS)
    x = torch.randn(2, 3, size, size)
    head = model.auxiliary_head
    maps = torch.randn(2, head.features[2].in_channels, size // 4, size // 4)
    assert torch.equal(head(maps), head.classifier(head.features(maps).flatten(1)))
    assert model(x)[1].shape == (2, 10)


@pytest.mark.parametrize("size", [28, 44])
def test_other_sizes_are_refused_by_the_auxiliary_head(size):
    model = NetworkCIFAR(4, 10, 3, True, cnn_genotypes.DARTS)
    with pytest.raises(InputError, match=f"32x32 to 40x40, got {size}x{size}"):
        model(torch.randn(2, 3, size, size))


def test_old_scripts_find_the_operations_where_the_original_had_them():
    for module in (model_search, discrete):
        for name in ("OPS", "SepConv", "DilConv", "Identity", "Zero", "FactorizedReduce", "ReLUConvBN"):
            assert getattr(module, name) is getattr(operations, name)
    assert NetworkCIFAR(4, 10, 3, False, cnn_genotypes.DARTS).cells[0]._steps == 4
