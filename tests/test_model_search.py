"""The networks: alphas beside the weights, checkpoints, genotypes of hand-made alphas, bad input."""

import copy
import pickle

import pytest
import torch
from torch import nn

from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.cnn.model import NetworkCIFAR, NetworkImageNet
from dartsfast.cnn.model_search import MixedOp, Network
from dartsfast.cnn.operations import FactorizedReduce
from dartsfast.cnn.utils import drop_path
from dartsfast.errors import InputError
from dartsfast.names import CNN_MEMORY_MODES
from dartsfast.rnn import genotypes as rnn_genotypes
from dartsfast.rnn.model import RNNModel
from dartsfast.rnn.model_search import RNNModelSearch


def network(**options):
    return Network(4, 10, 3, nn.CrossEntropyLoss(), **{"steps": 2, "multiplier": 2, **options})


def rnn(**options):
    return RNNModelSearch(30, 8, 8, 8, 0.0, 0.0, 0.0, 0.0, 0.0, **options)


MODELS = {"cnn": network, "rnn": rnn}


@pytest.mark.parametrize("kind", MODELS)
def test_alphas_are_trainable_leaves_beside_the_weights(kind):
    model = MODELS[kind]()
    alphas = model.arch_parameters()
    assert not {id(a) for a in alphas} & {id(p) for p in model.parameters()}
    optimizer = torch.optim.Adam(alphas, lr=0.1)
    model.double()
    assert all(a.is_leaf and a.requires_grad and a.dtype == torch.float64 for a in alphas)
    assert all(a is b for a, b in zip(alphas, model.arch_parameters(), strict=True))
    for alpha in alphas:
        alpha.grad = torch.ones_like(alpha)
    before = [a.detach().clone() for a in alphas]
    optimizer.step()
    after = model.arch_parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    model.float()
    assert all(a.dtype == a.grad.dtype == torch.float32 for a in alphas)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole(kind, clone):
    model = MODELS[kind]()
    twin = clone(model)
    for a, b in zip(model.arch_parameters(), twin.arch_parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b
        assert b.is_leaf and b.requires_grad
    twin.double()
    assert model.arch_parameters()[0].dtype == torch.float32


@pytest.mark.parametrize("kind", MODELS)
def test_state_dict_holds_the_alphas_and_old_checkpoints_load(kind):
    model, other = MODELS[kind](), MODELS[kind]()
    state = model.state_dict()
    names = {"cnn": ["alphas_normal", "alphas_reduce"], "rnn": ["weights"]}[kind]
    assert [k for k in state if k in names] == names
    other.load_state_dict(state)
    for a, b in zip(model.arch_parameters(), other.arch_parameters(), strict=True):
        assert torch.equal(a, b)
    kept = [a.detach().clone() for a in other.arch_parameters()]
    original = {k: v + 1 for k, v in state.items() if k not in names}
    other.load_state_dict(original, strict=True)
    for a, b in zip(kept, other.arch_parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({**state, names[0]: torch.zeros(1, 1)})
    with pytest.raises(RuntimeError, match="Unexpected"):
        other.load_state_dict({**state, "beta": torch.zeros(1)})


@pytest.mark.parametrize("kind", MODELS)
def test_new_has_these_alphas_and_other_weights(kind):
    model = MODELS[kind]().double()
    twin = model.new()
    for a, b in zip(model.arch_parameters(), twin.arch_parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b
    first = next(iter(model.parameters()))
    assert not torch.equal(first, next(iter(twin.parameters())))


class Doubled(MixedOp):
    def forward(self, x, weights):
        return 2 * super().forward(x, weights)


def test_new_mixes_as_the_first_one_was_asked_to():
    x, networks = torch.randn(2, 3, 8, 8), []
    for mixed_op in (Doubled, MixedOp):
        network = Network(4, 5, 2, nn.CrossEntropyLoss(), 2, 2, mixed_op=mixed_op, backend="reference")
        twin = network.new()
        twin.load_state_dict(network.state_dict())
        networks.append(network)
        assert type(twin.cells[0]._ops[0]) is mixed_op
        torch.testing.assert_close(twin.train()(x), network.train()(x), rtol=0, atol=0)


def alphas_of(rows, ops=8):
    """One row an edge, a dict of op name to alpha; the rest is far below."""
    alphas = torch.full((len(rows), ops), -5.0)
    for edge, row in enumerate(rows):
        for name, value in row.items():
            alphas[edge, cnn_genotypes.PRIMITIVES.index(name)] = value
    return alphas


def test_genotype_keeps_the_strongest_edges_in_their_order():
    model = network()
    rows = [
        {"sep_conv_3x3": 1.0},
        {"max_pool_3x3": 2.0},
        {"dil_conv_5x5": 3.0},
        {"skip_connect": 1.0},
        {"avg_pool_3x3": 2.0},
    ]
    with torch.no_grad():
        model.alphas_normal.copy_(alphas_of(rows))
    genotype = model.genotype()
    # strongest edge first, as the original lists them
    assert genotype.normal == [
        ("max_pool_3x3", 1),
        ("sep_conv_3x3", 0),
        ("dil_conv_5x5", 0),
        ("avg_pool_3x3", 2),
    ]
    assert list(genotype.normal_concat) == [2, 3]


def test_genotype_leaves_none_out():
    model = network()
    rows = [
        {"none": 9.0, "sep_conv_3x3": 1.0},  # none takes nearly all: the edge weighs little
        {"sep_conv_5x5": 1.0},
        {"none": 9.0, "skip_connect": 8.0},
        {"none": 9.0, "max_pool_3x3": 7.0},
        {"none": 9.0, "avg_pool_3x3": 6.0},
    ]
    with torch.no_grad():
        model.alphas_normal.copy_(alphas_of(rows))
    assert model.genotype().normal == [
        ("sep_conv_5x5", 1),
        ("sep_conv_3x3", 0),
        ("skip_connect", 0),
        ("max_pool_3x3", 1),
    ]


def test_ties_go_to_the_lower_edge_and_the_earlier_operation():
    model = network()
    with torch.no_grad():
        model.alphas_normal.zero_()
    assert model.genotype().normal == [("max_pool_3x3", j) for j in (0, 1, 0, 1)]
    recurrent = rnn()
    with torch.no_grad():
        recurrent.weights.zero_()
    assert recurrent.genotype().recurrent == [("tanh", 0)] * 8


def test_recurrent_genotype_takes_one_predecessor_a_node():
    model = rnn()
    with torch.no_grad():
        model.weights.zero_()
        model.weights[0, 4] = 1.0  # node 1 <- state 0, identity
        model.weights[2, 0] = 9.0  # node 2 <- state 1: none does not count, and takes the edge's weight
        model.weights[1, 2] = 0.5  # node 2 <- state 0, relu
        model.weights[5, 3] = 0.5  # node 3 <- state 2, sigmoid
    genotype = model.genotype()
    assert genotype.recurrent[:3] == [("identity", 0), ("relu", 0), ("sigmoid", 2)]
    assert list(genotype.concat) == list(range(1, 9))


def test_nan_alphas_have_no_genotype():
    model = network()
    with torch.no_grad():
        model.alphas_reduce[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        model.genotype()


@pytest.mark.parametrize("genotype", ["NASNet", "AmoebaNet", "DARTS_V1", "DARTS_V2"])
def test_published_cells_train(genotype):
    cells = getattr(cnn_genotypes, genotype)
    model = NetworkCIFAR(4, 10, 3, True, cells)
    model.drop_path_prob = 0.2
    logits, aux = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == aux.shape == (2, 10)
    (logits.sum() + aux.sum()).backward()
    model.eval()
    assert model(torch.randn(2, 3, 32, 32))[1] is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_paths_are_dropped_whole_and_the_others_scaled(dtype):
    x = torch.ones(4000, 2, 1, 3, dtype=dtype)
    dropped = drop_path(x, 0.25)
    assert dropped is x and dropped.dtype == dtype
    rows = dropped.flatten(1).double()
    kept = rows[:, 0] > 0
    assert torch.equal(
        rows, torch.where(kept, torch.tensor(1 / 0.75, dtype=dtype).double(), 0.0)[:, None].expand(-1, 6)
    )
    assert abs(kept.double().mean() - 0.75) < 0.03  # four deviations


def test_imagenet_network():
    model = NetworkImageNet(8, 7, 3, True, cnn_genotypes.DARTS_V2)
    logits, aux = model(torch.randn(2, 3, 224, 224))
    assert logits.shape == aux.shape == (2, 7)


@pytest.mark.parametrize("genotype", ["ENAS", "DARTS_V1", "DARTS_V2"])
def test_published_recurrent_cells_train(genotype):
    model = RNNModel(30, 8, 8, 8, genotype=getattr(rnn_genotypes, genotype))
    log_prob, hidden = model(torch.randint(30, (5, 3)), model.init_hidden(3))
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(5, 3))
    log_prob.sum().backward()
    assert hidden[0].shape == (1, 3, 8)


@pytest.mark.parametrize("kind", MODELS)
def test_recompute_gives_the_same_bits(kind):
    if kind == "cnn":
        x, y = torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 2])
        models = [network(memory=m) for m in CNN_MEMORY_MODES]
        losses = [lambda m=m: m._loss(x, y) for m in models]
    else:
        x, y = torch.randint(30, (7, 3)), torch.randint(30, (7, 3))
        models = [RNNModelSearch(30, 8, 8, 8, *[0.3] * 5, memory=m) for m in ("store", "recompute")]
        losses = [lambda m=m: m._loss(m.init_hidden(3), x, y)[0] for m in models]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    for loss in losses:
        torch.manual_seed(3)
        loss().backward()
    for model in models[1:]:
        for a, b in zip(models[0].parameters(), model.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        for a, b in zip(models[0].buffers(), model.buffers(), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(models[0].arch_parameters(), model.arch_parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)


def test_recompute_draws_the_same_random_numbers_again():
    x, y, gradients = torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 2]), []
    for memory in CNN_MEMORY_MODES:
        torch.manual_seed(5)
        model = network(memory=memory, backend="reference")
        for mixed in [m for m in model.modules() if isinstance(m, MixedOp)]:
            mixed._ops[4] = nn.Sequential(mixed._ops[4], nn.Dropout(0.5))
        model._loss(x, y).backward()
        parameters = [p.grad for p in [*model.parameters(), *model.arch_parameters()]]
        gradients.append([*parameters, torch.rand(1)])  # and leaves the generator where it was
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_recompute_keeps_less():
    def kept(memory):
        model = network(memory=memory)
        storages = {}

        def pack(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.randn(4, 3, 16, 16))
        return sum(storages.values())

    assert kept("recompute") < 0.5 * kept("store")


def test_a_search_space_of_ones_own(monkeypatch):
    from dartsfast.cnn.operations import OPS

    monkeypatch.setitem(OPS, "conv_1x1", lambda C, stride, affine: nn.Conv2d(C, C, 1, stride))
    model = network(primitives=["conv_1x1", "skip_connect", "conv_7x1_1x7"])
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert model.alphas_normal.shape == (5, 3)
    assert {name for name, _ in model.genotype().normal} <= {"conv_1x1", "skip_connect", "conv_7x1_1x7"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: network(primitives=["none", "conv_9x9"]), "unknown primitive 'conv_9x9'.*sep_conv_3x3"),
        (lambda: network(primitives=["none"]), "an operation other than none"),
        (lambda: network(primitives=["skip_connect", "skip_connect"]), "differ from each other"),
        (lambda: network(backend="cuda"), "backend 'cuda' is not available: .*dartsfast doctor"),
        (lambda: network(backend="tpu"), "unknown backend 'tpu'"),
        (lambda: rnn(backend="cuda"), "its kernels were not built"),
        (lambda: network(memory="lots"), "unknown memory mode 'lots'"),
        (lambda: network(multiplier=3), "multiplier=3 .* steps=2"),
        (lambda: Network(0, 10, 3, None), "C >= 1, got 0"),
        (lambda: network()(torch.randn(2, 1, 8, 8)), r"\[N, 3, H, W\], got \[2, 1, 8, 8\]"),
        (lambda: network()(torch.randn(2, 3, 9, 8)), "cannot halve a 9x8 image.*even"),
        (lambda: network()._loss(torch.randn(2, 3, 8, 8), torch.tensor([0, 10])), "label 10 .* 10 classes"),
        (lambda: FactorizedReduce(3, 5), "even number of output channels, got 5"),
        (lambda: RNNModelSearch(30, 8, 9, 8), "must be equal.* 8, 9, 8"),
        (lambda: RNNModelSearch(30, 8, 8, 8, memory="lots"), "unknown memory mode"),
        (lambda: RNNModel(30, 8, 8, 8), "needs a genotype"),
        (
            lambda: RNNModel(30, 8, 8, 8, genotype=rnn_genotypes.Genotype([("selu", 0)], [1])),
            "unknown activation 'selu'",
        ),
        (
            lambda: RNNModel(30, 8, 8, 8, genotype=rnn_genotypes.Genotype([("tanh", 1)], [1])),
            "takes state 1",
        ),
        (
            lambda: NetworkCIFAR(4, 10, 3, False, cnn_genotypes.DARTS._replace(normal=[("none?", 0)] * 8)),
            "unknown primitive 'none\\?'",
        ),
        (
            lambda: NetworkCIFAR(
                4, 10, 3, False, cnn_genotypes.DARTS._replace(reduce=[("skip_connect", 2)] * 2)
            ),
            "input 2",
        ),
        (
            lambda: NetworkCIFAR(4, 10, 3, False, cnn_genotypes.DARTS._replace(normal_concat=[9])),
            "concat of the normal cell names node 9",
        ),
        (lambda: NetworkCIFAR(4, 10, 3, True, cnn_genotypes.DARTS)(torch.randn(2, 3, 16, 16)), "32x32"),
    ],
)
def test_bad_input_names_the_value_and_the_remedy(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_wrong_token_is_refused():
    model = rnn()
    with pytest.raises(InputError, match="token 30 .* vocabulary of 30"):
        model(torch.tensor([[30]]), model.init_hidden(1))


def test_reassigned_alphas_are_the_ones_that_compute():
    model = rnn()
    x, hidden = torch.randint(30, (4, 2)), model.init_hidden(2)
    model(x, hidden)
    model.weights = torch.randn(36, 5, requires_grad=True)
    model._loss(hidden, x, x)[0].backward()
    assert model.weights.grad.abs().sum() > 0
    assert model._arch_parameters[0] is model.weights
    with pytest.raises(InputError, match="target 30 .* vocabulary of 30"):
        model._loss(hidden, x, torch.full_like(x, 30))


def test_mixed_op_is_the_weighted_sum():
    op = MixedOp(4, 1).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    weights = torch.rand(8, dtype=torch.float64)
    expected = torch.stack([w * o(x) for w, o in zip(weights, op._ops, strict=True)]).sum(0)
    torch.testing.assert_close(op(x, weights), expected)
