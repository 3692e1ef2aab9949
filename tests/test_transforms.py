"""What the fused path does not go through says so: torch.func, forward mode, tracing and export."""

import functools
import warnings

import pytest
import torch
from comparisons import assert_close, same_bits
from op_cases import CLASSES, LOCKED, NORMS, PRODUCTS, SMALL, STEPS, Vectors
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from dartsfast.backends import availability, table
from dartsfast.cnn.genotypes import DARTS_V2
from dartsfast.cnn.model import NetworkCIFAR
from dartsfast.cnn.model_search import Cell, Network
from dartsfast.errors import InputError
from dartsfast.ops.contract import CONTRACTS
from dartsfast.rnn.genotypes import DARTS_V2 as RNN_DARTS_V2
from dartsfast.rnn.model import RNNModel
from dartsfast.rnn.model_search import RNNModelSearch

cpu = availability("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
needs_cpu = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


def dual_numbers(f, *tensors):
    with forward_ad.dual_level():
        return f(*(forward_ad.make_dual(t.detach(), torch.ones_like(t)) for t in tensors))


def vmap(f, *tensors):
    return torch.func.vmap(f)(*(torch.stack([t.detach(), 2 * t.detach()]) for t in tensors))


def backward_of_many(f, *tensors):
    """One backward pass for two gradients, as of ``torch.autograd.functional.jacobian(vectorize=True)``."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(f(*tensors), tensors, torch.ones(2), is_grads_batched=True, allow_unused=True)


FORWARD = {
    "dual_numbers": dual_numbers,
    "jvp": lambda f, *tensors: torch.func.jvp(f, tensors, tensors),
    "jacfwd": lambda f, *tensors: torch.func.jacfwd(f)(*tensors),
    "vmap": vmap,
}
REVERSE = {
    "grad": lambda f, *tensors: torch.func.grad(f)(*tensors),
    "vjp": lambda f, *tensors: torch.func.vjp(f, *tensors),
    "jacrev": lambda f, *tensors: torch.func.jacrev(f)(*tensors),
    "backward_of_many": backward_of_many,
}
refused = functools.partial(pytest.raises, NotImplementedError, match="backend='reference'")
CASES = (*SMALL, *PRODUCTS[:1], *LOCKED[:1], *CLASSES[:1], NORMS[1], STEPS[1], Vectors(33))
CALLS = [(name, args) for case in CASES for name, args in case.calls()]
LEARNED = ("alpha_softmax", "branch_conv", "mixed_sum", "pool3x3", "rnn_node")
DIFFERENTIABLE = [
    (name, args)
    for name, args in CALLS
    # By a norm that is given rnn_node has no derivative in any mode.
    if name.removesuffix("_backward") in LEARNED and not (name == "rnn_node" and args[3] is not None)
]


def of_tensors(name, args):
    """Return the sum of what an operator gives as a function of its floating tensors, and those."""
    leaves, spec = tree_flatten(args)
    places = [i for i, t in enumerate(leaves) if isinstance(t, torch.Tensor) and t.is_floating_point()]

    def f(*tensors):
        given = list(leaves)
        for i, t in zip(places, tensors, strict=True):
            given[i] = t
        out = getattr(torch.ops.dartsfast, name)(*tree_unflatten(given, spec))
        return sum(t.double().sum() for t in tree_leaves(out) if t is not None).float()

    return f, [leaves[i].clone() for i in places]


def test_every_operator_is_called():
    assert {name for name, _ in CALLS} == set(CONTRACTS)


@needs_cpu
@pytest.mark.parametrize("transform", FORWARD)
@pytest.mark.parametrize("call", CALLS, ids=[name for name, _ in CALLS])
def test_no_operator_leaves_out_tangents_or_batches(call, transform):
    f, tensors = of_tensors(*call)
    for i, t in enumerate(tensors):  # each alone: its tangent, or that it is many, must not be passed by

        def by_one(t, i=i):
            return f(*tensors[:i], t, *tensors[i + 1 :])

        with refused():
            FORWARD[transform](by_one, t)


@needs_cpu
@pytest.mark.parametrize("transform", REVERSE)
@pytest.mark.parametrize("call", DIFFERENTIABLE, ids=[name for name, _ in DIFFERENTIABLE])
def test_differentiable_operators_refuse_transforms(call, transform):
    f, tensors = of_tensors(*call)
    with refused():
        REVERSE[transform](f, *tensors)


@needs_cpu
def test_an_operator_after_a_refusal_is_as_before():
    f, tensors = of_tensors(*DIFFERENTIABLE[0])
    learned = [t.clone().requires_grad_() for t in tensors]
    wanted = torch.autograd.grad(f(*learned), learned)
    for transform in (*FORWARD.values(), *REVERSE.values()):
        with refused():
            transform(f, *tensors)
    with forward_ad.dual_level():  # no tangents, nothing to refuse
        assert same_bits(torch.autograd.grad(f(*learned), learned), wanted)


def cnn(backend, dtype=torch.float32):
    torch.manual_seed(1)
    model = Network(2, 3, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2, backend=backend).eval().to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    return model, (x,), lambda model: lambda x: model(x).sum(), x


def rnn(backend, dtype=torch.float32):
    torch.manual_seed(1)
    model = RNNModelSearch(20, 6, 6, 6, backend=backend).eval().to(dtype)
    text, (hidden,) = torch.randint(20, (2, 4)), model.init_hidden(4)
    return model, (text, [hidden]), lambda model: lambda h: model(text, [h])[0].sum(), hidden + 0.1


NETWORKS = pytest.mark.parametrize("build", [cnn, rnn])


def first(out):
    """Return logits, or the log-probabilities before the hidden states."""
    return tree_leaves(out)[0]


def near(got, wanted):
    """Whether the outputs of networks in float32, some of them None, are the same but for rounding."""
    pairs = [(a, b) for a, b in zip(tree_leaves(got), tree_leaves(wanted), strict=True) if not a is b is None]
    return all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in pairs)


@needs_cpu
@NETWORKS
@pytest.mark.parametrize("transform", {**FORWARD, **REVERSE})
def test_fused_networks_refuse_transforms(build, transform):
    model, _, of_input, input = build("cpu")
    with refused():
        {**FORWARD, **REVERSE}[transform](of_input(model), input)


@needs_cpu
@NETWORKS
@pytest.mark.parametrize("transform", [dual_numbers, vmap, REVERSE["grad"]])
def test_fused_networks_refuse_transforms_of_each_weight(build, transform):
    model, args, *_ = build("cpu")
    for name, value in model.named_parameters():

        def of_weight(w, name=name):
            return first(functional_call(model, {name: w}, args)).sum()

        with refused():
            transform(of_weight, value)
    for name in model._arch_names:

        def of_alpha(alpha, name=name):
            setattr(model, name, alpha)
            return first(model(*args)).sum()

        value = getattr(model, name)
        with refused():
            transform(of_alpha, value)
        setattr(model, name, value)


@needs_cpu
def test_the_rnns_fused_loss_refuses_transforms():
    model, (text, hidden), *_ = rnn("cpu")
    for dropout in (0.0, 0.5):
        model.train().dropout = dropout

        def loss(bias):
            return functional_call(model, {"decoder.bias": bias}, (text, hidden), {"target": text})[0]

        for transform in (dual_numbers, FORWARD["jvp"], REVERSE["grad"]):
            with refused():
                transform(loss, model.decoder.bias)


@needs_cpu
@NETWORKS
def test_functional_call_of_fused_networks(build):
    model, args, *_ = build("cpu")
    other = {name: (w + 0.1).detach().requires_grad_() for name, w in model.named_parameters()}

    def learn(out, learned):
        out = first(out)
        return [out.detach(), *torch.autograd.grad((out * out).sum(), learned)]

    found = learn(functional_call(model, other, args), [*other.values(), *model.arch_parameters()])
    model.load_state_dict(other, strict=False)
    assert same_bits(found, learn(model(*args), [*model.parameters(), *model.arch_parameters()]))


@NETWORKS
def test_the_reference_path_goes_through_transforms(build):
    model, _, of_input, input = build("reference", torch.float64)
    f = of_input(model)
    x = input.clone().requires_grad_()
    wanted = torch.autograd.grad(f(x), x)[0]
    assert_close(torch.func.grad(f)(input), wanted)
    assert_close(torch.func.jvp(f, (input,), (input,))[1], (wanted * input).sum())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(input, input))).tangent
    assert_close(tangent, (wanted * input).sum())


def exported(strict):
    return lambda model, args: torch.export.export(model, args, strict=strict).module()


def traced(model, args):
    for alpha in model.arch_parameters():
        alpha.requires_grad_(False)
    return torch.jit.trace(model, args)


WAYS = {"trace": traced, "export": exported(False), "strict_export": exported(True)}


def small_cnn(backend):
    torch.manual_seed(1)
    model = Network(2, 3, 1, nn.CrossEntropyLoss(), steps=1, multiplier=1, backend=backend).eval()
    return model, *((torch.randn(2, 3, 8, 8),) for _ in range(2))


def small_rnn(backend):
    model, (text, hidden), *_ = rnn(backend)
    return model, (text[:1], hidden), (text[1:], [hidden[0] + 1])


SMALL_NETWORKS = pytest.mark.parametrize("build", [small_cnn, small_rnn])


@needs_cpu
@SMALL_NETWORKS
@pytest.mark.parametrize("way", WAYS)
def test_fused_networks_refuse_to_be_traced_or_exported(build, way):
    model, args, _ = build("cpu")
    with pytest.raises(Exception, match=r"torch\.export.*found cells.*'reference'") as raised:
        WAYS[way](model, args)
    assert isinstance(raised.value, InputError)
    model(*args)  # and nothing of it stays


@needs_cpu
@SMALL_NETWORKS
@pytest.mark.parametrize("way", WAYS)
def test_of_auto_the_reference_path_is_traced_or_exported_aloud(build, way):
    model, args, others = build("auto")
    table._warn_of_unused.cache_clear()
    with pytest.warns(UserWarning, match=r"backend cpu not used: torch\.jit\.trace and torch\.export"):
        program = WAYS[way](model, args)
    reference, *_ = build("reference")
    assert all(near(program(*given), reference(*given)) for given in (args, others))


@needs_cpu
def test_a_fused_cell_alone_refuses_to_be_traced():
    cell = Cell(1, 1, 4, 4, 4, False, False, backend="cpu").eval()
    x, weights = torch.randn(1, 4, 6, 6), torch.rand(2, 8)
    with pytest.raises(InputError, match=r"torch\.jit\.trace"):
        torch.jit.trace(cell, (x, x, weights))


@pytest.mark.parametrize(
    "build",
    [
        lambda: (NetworkCIFAR(2, 3, 1, False, DARTS_V2), (torch.randn(1, 3, 32, 32),)),
        lambda: (RNNModel(20, 6, 6, 6, genotype=RNN_DARTS_V2), (torch.ones(2, 1, dtype=torch.long),)),
    ],
    ids=["cifar", "rnn"],
)
def test_networks_of_found_cells_are_exported(build):
    torch.manual_seed(1)
    model, args = build()
    model.eval().drop_path_prob = 0.0
    if isinstance(model, RNNModel):
        args = (*args, model.init_hidden(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        program = torch.export.export(model, args, strict=False).module()
    assert near(program(*args), model(*args))
