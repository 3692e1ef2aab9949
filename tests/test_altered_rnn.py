"""Old scripts alter the RNN's cell, its globals and its hooks: what they altered is what computes."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_fused_rnn import DRY, network, relative, text
from test_fused_rnn import one_thread as one_thread  # a fixture
from torch import nn

from dartsfast.backends import availability
from dartsfast.errors import InputError
from dartsfast.rnn import fused, model_search
from dartsfast.rnn.model import ACTIVATIONS, RNNModel
from dartsfast.rnn.model_search import DARTSCellSearch, RNNModelSearch
from dartsfast.rnn.utils import LockedDropout

_cpu = availability("cpu")
needs_cpu = pytest.mark.skipif(not _cpu.available, reason=_cpu.reason)


def results(model):
    """Return the loss, the hidden state and all gradients of a pass."""
    x, y = text()
    torch.manual_seed(0)
    log_prob, hidden = model(x, model.init_hidden(6))
    loss = F.nll_loss(log_prob.flatten(0, 1), y.flatten())
    leaves = [*model.parameters(), *model.arch_parameters()]
    return [loss, hidden[0], *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


def assert_same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert relative(a, b) < 1e-10


def halved(method):
    """Return ``method`` with half the result; forward returns the last state beside all of them."""

    def half(self, *args):
        out = method(self, *args)
        return (out[0] / 2, out[1] / 2) if isinstance(out, tuple) else out / 2

    return half


def soft(method):
    return lambda self, name: F.softplus if name == "relu" else method(self, name)


METHODS = ["forward", "recur", "cell", "_mixed_cell", "_compute_init_state", "_get_activation"]
OVERRIDES = {
    name: (soft if name == "_get_activation" else halved)(getattr(DARTSCellSearch, name)) for name in METHODS
}


def subclassed(model, name, patch):
    model.rnns[0].__class__ = type("Mine", (DARTSCellSearch,), {name: OVERRIDES[name]})


def patched_instance(model, name, patch):
    patch.setattr(model.rnns[0], name, OVERRIDES[name].__get__(model.rnns[0]))


def patched_class(model, name, patch):
    patch.setattr(DARTSCellSearch, name, OVERRIDES[name])


@needs_cpu
@pytest.mark.parametrize("alter", [subclassed, patched_instance, patched_class])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_ones_own_computes(name, alter, monkeypatch):
    plain = results(network("reference"))
    ours, theirs = network("cpu"), network("reference")
    results(ours)  # a pass before: nothing of it may stay
    for model in (ours, theirs):
        alter(model, name, monkeypatch)
    wanted = results(theirs)
    with pytest.warns(UserWarning, match=rf"not fused: \w+\.{name} is not that of DARTSCellSearch"):
        assert_same(results(ours), wanted)
    assert relative(wanted[1], plain[1]) > 1e-5  # batch norm undoes most


@needs_cpu
def test_the_cell_alone_sees_what_was_altered_since_the_last_pass(monkeypatch):
    model = network("cpu", dropouts=DRY)
    x, hidden = torch.randn(2, 6, 12, dtype=torch.float64), torch.randn(1, 6, 12, dtype=torch.float64)
    model(text()[0], model.init_hidden(6))
    plain = model.rnns[0](x, hidden)[0]
    subclassed(model, "cell", monkeypatch)
    with pytest.warns(UserWarning, match=r"Mine\.cell"):
        assert relative(model.rnns[0](x, hidden)[0][0], plain[0] / 2) < 1e-12


@needs_cpu
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, LockedDropout])
def test_a_forward_that_a_script_gave_to_a_class_computes(kind, monkeypatch):
    """In the loss too, which otherwise multiplies only what dropout leaves."""
    x, y = text()
    ours, theirs = network("cpu"), network("reference")
    forward, losses = kind.forward, []
    monkeypatch.setattr(kind, "forward", lambda self, *args: forward(self, *args) / 2)
    for model in (ours, theirs):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses.append(model(x, model.init_hidden(6), target=y)[0])
    assert relative(*losses) < 1e-10
    monkeypatch.undo()
    torch.manual_seed(0)
    assert relative(ours(x, ours.init_hidden(6), target=y)[0], losses[0]) > 1e-5


def scaled(module, args, out):
    return out / 2 if isinstance(module, nn.BatchNorm1d) else None


def scaled_gradient(module, of_inputs, of_outputs):
    return (of_inputs[0] / 2,) if isinstance(module, nn.BatchNorm1d) else None


NORMS = {
    "hook": lambda norm: norm.register_forward_hook(scaled),
    "backward hook": lambda norm: norm.register_full_backward_hook(scaled_gradient),
    "global hook": lambda norm: nn.modules.module.register_module_forward_hook(scaled),
}


@needs_cpu
@pytest.mark.parametrize("kind", NORMS)
def test_hooks_of_the_batch_norm_run(kind):
    plain = results(network("reference"))
    ours, theirs = network("cpu"), network("reference")
    handles = [NORMS[kind](model.rnns[0].bn) for model in (ours, theirs)]
    try:
        wanted = results(theirs)
        with pytest.warns(UserWarning, match="not fused: its batch norm has hooks"):
            assert_same(results(ours), wanted)
    finally:
        for handle in handles:
            handle.remove()
    assert relative(wanted[-1], plain[-1]) > 1e-3
    assert_same(results(network("cpu")), plain)


@needs_cpu
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(12), nn.LayerNorm(12)], ids=str)
def test_another_norm_computes(norm):
    ours, theirs = network("cpu"), network("reference")
    for model in (ours, theirs):
        model.rnns[0].bn = norm.double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    with pytest.warns(UserWarning, match="no BatchNorm1d without affine"):
        assert_same(results(ours), results(theirs))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
def test_a_models_forward_of_ones_own_gives_the_loss(backend, monkeypatch):
    def forward(self, input, hidden, return_h=False):
        log_prob, hidden = RNNModel.forward(self, input, hidden, return_h)
        return 2 * log_prob, hidden

    (x, y), model = text(), network(backend, dropouts=DRY)
    wanted = 2 * model._loss(model.init_hidden(6), x, y)[0]
    monkeypatch.setattr(RNNModelSearch, "forward", forward)
    assert relative(model._loss(model.init_hidden(6), x, y.flatten())[0], wanted) < 1e-12


@needs_cpu
def test_hooks_of_the_cell_run_around_the_fused_one():
    ours, theirs = network("cpu"), network("reference")
    for model in (ours, theirs):
        model.rnns[0].register_forward_hook(lambda module, args, out: (out[0] / 2, out[1] / 3))
        model.rnns[0].register_full_backward_hook(lambda module, of_in, of_out: (2 * of_in[0], None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(results(ours), results(theirs))


def fused_calls(monkeypatch):
    called = []
    recurrence = fused.recurrence
    monkeypatch.setattr(fused, "recurrence", lambda *args: called.append(args) or recurrence(*args))
    return called


GLOBALS = {
    "CONCAT": (lambda patch: patch.setattr(model_search, "CONCAT", 4), "CONCAT = 4"),
    "the input's state": (lambda patch: patch.setattr(model_search, "CONCAT", 9), "CONCAT = 9"),
    "activation": (lambda patch: patch.setitem(ACTIVATIONS, "relu", F.elu), "'relu' is another function"),
    "primitive added": (lambda patch: add_primitive(patch, "sin", torch.sin), "PRIMITIVES has 'sin'"),
    "primitive twice": (lambda patch: add_primitive(patch, "tanh", torch.tanh), "PRIMITIVES has 'tanh'"),
}


def add_primitive(patch, name, function):
    patch.setattr(model_search, "PRIMITIVES", [*model_search.PRIMITIVES, name])
    patch.setitem(ACTIVATIONS, name, function)


@needs_cpu
@pytest.mark.parametrize("name", GLOBALS)
def test_globals_are_read_when_the_cell_runs(name, monkeypatch):
    alter, reason = GLOBALS[name]
    plain = results(network("reference"))
    alter(monkeypatch)
    wanted = results(network("reference"))
    with pytest.warns(UserWarning, match=f"not fused: .*{reason}"):
        assert_same(results(network("cpu")), wanted)
    assert relative(wanted[1], plain[1]) > 1e-3


@needs_cpu
@pytest.mark.parametrize(
    "primitives",
    [
        ["none", "identity", "tanh", "sigmoid", "relu"],
        ["none", "tanh", "relu", "identity"],
        ["relu", "tanh"],
        ["none", "sigmoid"],
    ],
    ids="-".join,
)
def test_another_order_or_a_subset_of_the_primitives_is_fused(primitives, monkeypatch):
    monkeypatch.setattr(model_search, "PRIMITIVES", primitives)
    called = fused_calls(monkeypatch)
    wanted = results(network("reference"))
    assert not called
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(results(network("cpu")), wanted)
    assert called


@needs_cpu
def test_primitives_changed_after_the_model_was_built_fail_as_stock_modules_do(monkeypatch):
    models = [network(backend) for backend in ("cpu", "reference")]
    monkeypatch.setattr(model_search, "PRIMITIVES", ["none", "tanh", "relu"])
    wanted = results(models[1])  # the columns that are named
    with pytest.warns(UserWarning, match=r"its alphas are \[36, 5\]"):
        assert_same(results(models[0]), wanted)
    add_primitive(monkeypatch, "sin", torch.sin)
    add_primitive(monkeypatch, "cos", torch.cos)
    add_primitive(monkeypatch, "exp", torch.exp)
    for model in models:
        with warnings.catch_warnings(), pytest.raises(IndexError):
            warnings.simplefilter("ignore")
            results(model)


BEFORE = """
from dartsfast.rnn import model
import torch.nn.functional as F
built = model.DARTSCell._get_activation
model.ACTIVATIONS["relu"] = F.elu
model.DARTSCell._get_activation = lambda self, name: F.silu if name == "tanh" else built(self, name)
from test_altered_rnn import assert_same, network, results
assert_same(results(network("cpu")), results(network("reference")))
"""


@needs_cpu
def test_what_was_altered_before_the_search_model_was_imported():
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent)])
    subprocess.run([sys.executable, "-c", BEFORE], env={**os.environ, "PYTHONPATH": path}, check=True)


def test_an_activation_that_nobody_defined_is_named(monkeypatch):
    monkeypatch.setattr(model_search, "PRIMITIVES", ["none", "tanh", "selu"])
    with pytest.raises(InputError, match="unknown activation 'selu': known are tanh"):
        results(network("reference"))
