"""Which modules the fused operators serve: others run as they are, and compute what they say."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from dartsfast.backends import availability
from dartsfast.cnn import model_search
from dartsfast.cnn.model_search import Cell, MixedOp, Network
from dartsfast.cnn.operations import DilConv, FactorizedReduce, Identity, ReLUConvBN, SepConv, Zero

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


class Twice(Identity):
    def forward(self, x):
        return 2 * x


class Halves(Zero):
    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride] / 2


def affine(C):
    norm = nn.BatchNorm2d(C)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def replace(kind, place, build):
    """Return a function that replaces layer ``place`` of every ``kind`` in a network."""

    def change(model):
        for module in list(model.modules()):
            if type(module) is kind:
                layers = module.op if hasattr(module, "op") else module
                old = layers[place] if isinstance(place, int) else getattr(layers, place)
                setattr(layers, str(place), build(old))

    return change


def replace_op(kind, build):
    """Return a function that replaces every operation of ``kind`` in a network's mixed operations."""

    def change(model):
        for mixed in [m for m in model.modules() if isinstance(m, MixedOp)]:
            for k, op in enumerate(mixed._ops):
                if type(op) is kind:
                    mixed._ops[k] = build(op)

    return change


def replace_pool(kind, place, build):
    """Return a function that replaces the pool (0) or the norm (1) of every pooling of ``kind``."""

    def change(model):
        for module in list(model.modules()):
            if type(module) is nn.Sequential and type(module[0]) is kind:
                module[place] = build(module[0] if place == 0 else module[1])

    return change


def depthwise(kernel=3, **options):
    def build(old):
        sizes = {"kernel_size": kernel, "stride": old.stride, "groups": old.groups, "bias": False, **options}
        return nn.Conv2d(old.in_channels, old.out_channels, **sizes)

    return build


def pointwise(**options):
    return lambda old: nn.Conv2d(old.in_channels, old.out_channels, 1, **options)


def window(old):
    return nn.Conv2d(old.in_channels, old.out_channels, 3, 2, 1, bias=False)


def leaky(old):
    return nn.LeakyReLU(0.3)


class Squared(MixedOp):
    def forward(self, x, weights):
        return super().forward(x, weights**2)


class Edge(nn.Module):
    """An edge of a script's own, which knows of no stride."""

    def __init__(self, mixed):
        super().__init__()
        self.mixed = mixed

    def forward(self, x, weights):
        return self.mixed(x.sin(), weights)


def replace_edges(build, which=slice(None)):
    """Return a function that replaces edges of every cell."""

    def change(model):
        for cell in model.cells:
            for j in range(len(cell._ops))[which]:
                cell._ops[j] = build(cell._ops[j])

    return change


def become(kind):
    """Return a function that makes a module one of ``kind``, as scripts do."""

    def build(module):
        module.__class__ = kind
        return module

    return build


def each(kind, act):
    """Return a function that does something to every ``kind`` in a network."""

    def change(model):
        for module in list(model.modules()):
            if type(module) is kind:
                act(module)

    return change


def bent(out):
    return out.sin() + 0.1  # no norm takes this back, and zeros become something


def own_forward(module):
    forward = module.forward
    module.forward = lambda *args: bent(forward(*args))


def forward_hook(module):
    module.register_forward_hook(lambda module, args, out: bent(out))


def pre_hook(module):
    module.register_forward_pre_hook(lambda module, args: (bent(args[0]), *args[1:]))


def backward_hook(module):
    module.register_full_backward_hook(
        lambda module, into, out: tuple(g if g is None else 2 * g for g in into)
    )


def first_node_of_zeros(model):
    for mixed in model.cells[0]._ops[:2]:
        for k in range(len(mixed._ops)):
            mixed._ops[k] = Zero(mixed.stride)


def extend_stem(model):
    model.stem.append(nn.Tanh())


ALTERED = {
    "first relu": replace(SepConv, 0, leaky),
    "second relu": replace(SepConv, 4, leaky),
    "relu of a dilated convolution": replace(DilConv, 0, leaky),
    "instance norm": replace(DilConv, 3, lambda old: nn.InstanceNorm2d(old.num_features)),
    "no norm": replace(DilConv, 3, lambda old: nn.Identity()),
    "norm with affine": replace(SepConv, 7, lambda old: affine(old.num_features)),
    "padding": replace(SepConv, 5, depthwise(padding=1, padding_mode="circular")),
    "oblong kernel": replace(SepConv, 1, depthwise((3, 5), padding=(1, 2))),
    "other dilations": replace(SepConv, 5, depthwise(padding=(1, 2), dilation=(1, 2))),
    "bias": replace(DilConv, 2, pointwise()),
    "groups": replace(DilConv, 2, pointwise(groups=2, bias=False)),
    "an identity that is none": replace_op(Identity, lambda op: Twice()),
    "a none that is something": replace_op(Zero, lambda op: Halves(op.stride)),
    "larger maxima": replace_pool(nn.MaxPool2d, 0, lambda old: nn.MaxPool2d(5, old.stride, 2)),
    "averages with padding": replace_pool(nn.AvgPool2d, 0, lambda old: nn.AvgPool2d(3, old.stride, 1)),
    "averages of another divisor": replace_pool(
        nn.AvgPool2d, 0, lambda old: nn.AvgPool2d(3, old.stride, 1, divisor_override=5)
    ),
    "pool and affine": replace_pool(nn.MaxPool2d, 1, lambda old: affine(old.num_features)),
    "reduction with affine": replace(FactorizedReduce, "bn", lambda old: affine(old.num_features)),
    "reduction without relu": replace(FactorizedReduce, "relu", lambda old: nn.Identity()),
    "reduction of larger windows": replace(FactorizedReduce, "conv_1", window),
    "subclassed edges": replace_edges(become(Squared)),
    "a subclassed edge beside others": replace_edges(become(Squared), slice(1, 2)),
    "edges of one's own": replace_edges(Edge, slice(None, None, 2)),
    "a node of zeros": first_node_of_zeros,
    "fewer operations than weights": replace_edges(lambda mixed: mixed._ops.pop(7) and mixed),
    "hook on the stem": lambda model: forward_hook(model.stem),
    "hook on the stem's norm": lambda model: forward_hook(model.stem[1]),
    "longer stem": extend_stem,
    "stem with a bias": lambda model: setattr(model.stem, "0", nn.Conv2d(3, 12, 3, padding=1)),
    "stem without affine": lambda model: setattr(model.stem, "1", nn.BatchNorm2d(12, affine=False)),
}  # fmt: skip


KINDS = (
    MixedOp,
    SepConv,
    DilConv,
    ReLUConvBN,
    FactorizedReduce,
    Identity,
    Zero,
    nn.Sequential,
    nn.ReLU,
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
)
WAYS = (own_forward, forward_hook, pre_hook, backward_hook)
ALTERED |= {
    f"{act.__name__} of {kind.__name__}": each(kind, act)
    for act in WAYS
    for kind in KINDS
    if kind is not Zero or act in (own_forward, forward_hook)  # zeros in, or zeros back, are zeros
}


def outcome(backend, change, memory="store"):
    """Return loss and gradients of a network that ``change`` has altered, weights from one seed."""
    torch.manual_seed(0)
    model = Network(4, 5, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2, backend=backend, memory=memory)
    change(model)
    model = model.double()
    assert model.backend == backend
    x, y = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.randint(5, (3,))
    loss = model._loss(x, y)
    loss.backward()
    named = [("loss", loss.detach()), *((n, p.grad) for n, p in model.named_parameters())]
    return dict(named) | {f"alpha {i}": a.grad for i, a in enumerate(model.arch_parameters())}


def assert_same(got, wanted):
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.fixture(scope="module")
def plain():
    return outcome("reference", lambda model: None)


@pytest.mark.filterwarnings("ignore:edges run as ordinary modules")
@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_altered_modules_compute_what_they_say(change, plain):
    wanted = outcome("reference", change)
    assert_same(outcome("cpu", change), wanted)
    assert wanted.keys() != plain.keys() or any(not torch.equal(wanted[n], plain[n]) for n in plain)


@pytest.mark.filterwarnings("ignore:edges run as ordinary modules")
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_given_another_forward_computes_with_it(monkeypatch, kind, plain):
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args: bent(forward(self, *args)))
    wanted = outcome("reference", lambda model: None)
    assert_same(outcome("cpu", lambda model: None), wanted)
    assert not torch.equal(wanted["loss"], plain["loss"])


def test_a_cell_whose_first_input_is_zeros():
    found = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        cell = Cell(2, 2, 4, 4, 4, False, False, backend=backend).double()
        cell.preprocess0 = Zero(1)
        inputs = [torch.randn(3, 4, 8, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        weights = torch.rand(5, 8, dtype=torch.float64, requires_grad=True)
        out = cell(*inputs, weights)
        gradients = torch.autograd.grad(out.square().sum(), [*inputs, weights])
        found.append({str(k): t for k, t in enumerate([out.detach(), *gradients])})
    assert_same(found[1], found[0])


@pytest.mark.filterwarnings("ignore:edges run as ordinary modules")
def test_hooks_of_all_modules_run():
    seen, counts = [], []
    register = nn.modules.module.register_module_forward_hook
    handle = register(lambda module, args, out: seen.append(type(module)))
    try:
        for backend in ("reference", "cpu"):
            outcome(backend, lambda model: None)
            counts.append({kind: seen.count(kind) for kind in set(seen)})
            seen.clear()
    finally:
        handle.remove()
    assert counts[0][MixedOp] >= 15  # three cells of five edges
    assert counts[0] == counts[1]


@pytest.mark.filterwarnings("ignore:edges run as ordinary modules")
@pytest.mark.parametrize("change", ["subclassed edges", "edges of one's own", "a node of zeros"])
def test_altered_edges_are_recomputed_to_the_same_bits(change):
    kept, again = (outcome("cpu", ALTERED[change], memory) for memory in ("store", "recompute"))
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_edges_that_fall_back_say_so_once():
    model_search._warn_of_altered_edges.cache_clear()
    with pytest.warns(UserWarning, match="edges run as ordinary modules.*: Squared is not MixedOp") as caught:
        outcome("cpu", ALTERED["subclassed edges"])
        outcome("cpu", ALTERED["subclassed edges"])
    assert len([w for w in caught if "ordinary modules" in str(w.message)]) == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "constrain",
    [
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
    ids=["spectral_norm", "weight_norm", "parametrized", "prune"],
)
def test_weights_that_are_computed_train_as_they_say(constrain):
    states = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        model = Network(4, 5, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2, backend=backend).double()
        constrain(model.cells[0]._ops[0]._ops[4].op[2])
        sgd = torch.optim.SGD(model.parameters(), 0.5)
        x, y = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.randint(5, (3,))
        for _ in range(3):
            sgd.zero_grad()
            model._loss(x, y).backward()
            sgd.step()
        states.append({name: value.double() for name, value in model.state_dict().items()})
    assert_same(states[1], states[0])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_operations_beyond_the_weights_take_no_part(backend, plain):
    """As the original's zip; also where the weights have been narrowed."""
    assert_same(outcome(backend, lambda model: [m._ops.append(Twice()) for m in model.cells[0]._ops]), plain)

    def narrow(model):
        for name in ("alphas_normal", "alphas_reduce"):
            setattr(model, name, getattr(model, name).detach()[:, :5].clone().requires_grad_())

    def shorten(model):
        narrow(model)
        each(MixedOp, lambda mixed: setattr(mixed, "_ops", mixed._ops[:5]))(model)

    wanted, got = outcome("reference", shorten), outcome(backend, narrow)
    assert_same({name: got[name] for name in wanted}, wanted)
    assert all(value is None for name, value in got.items() if name not in wanted)
