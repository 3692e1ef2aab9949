"""What is kept from one iteration to the next does not depend on the mode in which it was first asked for."""

import contextlib
import gc
import sys

import pytest
import torch
from comparisons import same_bits
from op_backends import needs_kernels
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import dartsfast.descendants.plan  # noqa: F401 - whose constants are counted
from dartsfast.bilevel import flatten_
from dartsfast.cnn.model_search import Network
from dartsfast.rnn.model_search import RNNModelSearch

pytestmark = needs_kernels


def cnn():
    torch.manual_seed(1)
    model = Network(2, 3, 3, torch.nn.CrossEntropyLoss(), steps=2, multiplier=2, backend="cpu")
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    return model, lambda: model._loss(x, y)


def rnn():
    torch.manual_seed(1)
    model = RNNModelSearch(20, 6, 6, 6, backend="cpu")
    text = torch.randint(20, (3, 4))
    return model, lambda: model._loss(model.init_hidden(4), text[:-1], text[1:])[0]


NETWORKS = pytest.mark.parametrize("build", [cnn, rnn])


def step(model, loss):
    """Return the loss and its gradients; drop out the same each time."""
    torch.manual_seed(2)
    value = loss()
    learned = [*model.parameters(), *model.arch_parameters()]
    return [value.detach(), *torch.autograd.grad(value, learned, allow_unused=True)]


def constants():
    """Return every function of the package that keeps what it returns, by name."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "dartsfast"]
    kept = [v for module in modules for v in vars(module).values() if hasattr(v, "cache_clear")]
    return {f"{v.__module__}.{v.__name__}": v for v in kept if v.__annotations__["return"] == "Tensor"}


def forget():
    for function in constants().values():
        function.cache_clear()


@contextlib.contextmanager
def chosen(set_, value, before):
    set_(value)
    try:
        yield
    finally:
        set_(before)


MODES = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default_device": lambda: torch.device("meta"),
    "float64": lambda: chosen(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: chosen(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "deterministic": lambda: chosen(torch.use_deterministic_algorithms, True, False),
    "fake": lambda: FakeTensorMode(allow_non_fake_inputs=True),
}


@NETWORKS
@pytest.mark.parametrize("mode", MODES)
def test_training_after_a_pass_in_a_mode(build, mode):
    forget()
    expected = step(*build())
    forget()
    model, loss = build()
    running = [b.clone() for b in model.buffers()]
    with MODES[mode](), contextlib.suppress(RuntimeError if mode == "fake" else ()):
        loss()
    for buffer, value in zip(model.buffers(), running, strict=True):
        buffer.copy_(value)
    assert same_bits(step(model, loss), expected)


@NETWORKS
def test_nothing_made_while_tracing_is_kept(build):
    forget()
    expected = step(*build())
    forget()
    model, loss = build()
    torch.compile(loss, backend="eager")()
    model, loss = build()
    assert same_bits(step(model, loss), expected)


@pytest.mark.parametrize("name", sorted(constants()))
def test_a_constant_is_made_for_every_mode(name):
    made, args = constants()[name], ARGUMENTS[name.split(".")[-1]]
    made.cache_clear()
    with torch.inference_mode():
        first = made(*args)
    assert not first.is_inference() and made(*args) is first
    made.cache_clear()
    with FakeTensorMode():
        assert isinstance(made(*args), FakeTensor)
    assert type(made(*args)) is torch.Tensor
    with FakeTensorMode():  # a real one would not mix with those that stand for others
        assert isinstance(made(*args), FakeTensor)
    made.cache_clear()
    seen = []
    torch.func.functionalize(lambda x: seen.append(made(*args)) or x)(torch.zeros(2))
    assert not torch._is_functional_tensor(made(*args)) and torch.equal(made(*args), first)


ARGUMENTS = {
    "places": ((0, 2), torch.device("cpu")),
    "batch_norms": ((True, False), torch.float32, torch.device("cpu")),
    "no_norm": (3, torch.float32, torch.device("cpu")),
    "no_coef": (3, torch.float32, torch.device("cpu")),
    "ones": (torch.float32, torch.device("cpu")),
    "_tanh_alone": (torch.float32, torch.device("cpu")),
    "_columns": (("none", "tanh"), torch.device("cpu")),
    "like": ((2, 3), torch.float32, torch.device("cpu"), False),
    "_number": (1.0, torch.float32, torch.device("cpu")),
    "_ones": ((2, 3), torch.float32, torch.device("cpu")),
}


def test_no_other_function_keeps_tensors():
    """All that is kept goes by ``constant``: a network that ran leaves no other tensor behind."""
    assert {name.split(".")[-1] for name in constants()} == set(ARGUMENTS)
    forget()
    gc.collect()
    before = {id(t) for t in gc.get_objects() if isinstance(t, torch.Tensor)}
    for build in (cnn, rnn):
        with torch.inference_mode():
            _, loss = build()
            loss()
        del loss, _
    forget()
    gc.collect()
    assert not [t.shape for t in gc.get_objects() if isinstance(t, torch.Tensor) and id(t) not in before]


@NETWORKS
def test_statistics_moved_first_in_inference_mode(build):
    """Running statistics are the same as after a pass outside, and go on to move."""
    buffers = []
    for mode in (torch.inference_mode, torch.no_grad):
        model, loss = build()
        with mode():
            torch.manual_seed(2)
            loss()
        step(model, loss)
        assert not any(b.is_inference() for b in model.buffers())
        buffers.append([b.clone() for b in model.buffers()])
    assert same_bits(*buffers)


@NETWORKS
def test_a_network_built_in_inference_mode_evaluates_anywhere(build):
    with torch.inference_mode():
        model, loss = build()
        model.eval()
        inside = loss()
    with torch.no_grad():
        assert same_bits(loss(), inside)
    other, wanted = build()
    other.eval()
    assert same_bits(wanted().detach(), inside)


def test_weights_flattened_in_inference_mode_can_be_trained():
    weights = [torch.nn.Parameter(torch.randn(n)) for n in (3, 40)]
    before = [w.detach().clone() for w in weights]
    with torch.inference_mode():
        flatten_(weights)
    assert not any(w.is_inference() for w in weights) and same_bits([w.detach() for w in weights], before)
    sum((w * w).sum() for w in weights).backward()
    assert all(torch.equal(w.grad, 2 * w) for w in weights)
