"""A program is read off its modules again when something about them changed, and only then."""

import copy
import gc
from collections import OrderedDict

import pytest
import torch
from torch import nn

from dartsfast.backends import availability
from dartsfast.cnn.model_search import MixedOp, Network
from dartsfast.cnn.operations import Identity, SepConv, Zero
from dartsfast.fused import cnn, programs
from dartsfast.fused.watch import Watch

cpu = availability("cpu")
needs_kernels = pytest.mark.skipif(not cpu.available, reason=cpu.reason)

GLOBAL = torch.nn.modules.module


def first(module, kind):
    return next(m for m in module.modules() if type(m) is kind)


def replace_weight(op):
    conv = first(op, nn.Conv2d)
    conv.weight = nn.Parameter(conv.weight.detach().clone())


def set_class_forward(op):
    forward = Identity.forward
    Identity.forward = lambda self, x: 2 * x
    return lambda: setattr(Identity, "forward", forward)


CHANGES = {
    "a module replaced": lambda op: op._ops.__setitem__(3, Zero(1)),
    "a module added": lambda op: op._ops.append(Zero(1)) and None,
    "a layer replaced": lambda op: first(op, SepConv).op.__setitem__(0, nn.ReLU6()),
    "a forward hook": lambda op: first(op, nn.Conv2d).register_forward_hook(lambda *_: None).remove,
    "a pre-hook": lambda op: first(op, nn.ReLU).register_forward_pre_hook(lambda *_: None).remove,
    "a backward hook": lambda op: first(op, nn.Conv2d).register_full_backward_hook(lambda *_: None).remove,
    "a hook of all": lambda op: GLOBAL.register_module_forward_hook(lambda *_: None).remove,
    "a forward of its own": lambda op: setattr(first(op, Identity), "forward", lambda x: x),
    "a forward of its class": set_class_forward,
    "another class": lambda op: setattr(first(op, Identity), "__class__", Zero),
    "evaluation": lambda op: op.eval() and None,
    "momentum": lambda op: setattr(first(op, nn.BatchNorm2d), "momentum", None),
    "eps": lambda op: setattr(first(op, nn.BatchNorm2d), "eps", 0.1),
    "no running statistics": lambda op: setattr(first(op, nn.BatchNorm2d), "track_running_stats", False),
    "another buffer": lambda op: setattr(first(op, nn.BatchNorm2d), "running_mean", torch.zeros(4)),
    "another weight": replace_weight,
    "a weight of another shape": lambda op: setattr(
        first(op, nn.Conv2d).weight, "data", torch.zeros(4, 1, 5, 5)
    ),
    "hooks in another dict": lambda op: (
        setattr(first(op, nn.Conv2d), "_forward_hooks", OrderedDict())
        or first(op, nn.Conv2d).register_forward_hook(lambda *_: None).remove
    ),
    "a bias": lambda op: setattr(first(op, nn.Conv2d), "bias", nn.Parameter(torch.zeros(4))),
    "padding": lambda op: setattr(first(op, nn.Conv2d), "padding", (0, 0)),
    "dilation": lambda op: setattr(first(op, nn.Conv2d), "dilation", (3, 3)),
    "stride": lambda op: setattr(op, "stride", 2),
    "in place": lambda op: setattr(first(op, nn.ReLU), "inplace", True),
    "a pool's window": lambda op: setattr(first(op, nn.MaxPool2d), "kernel_size", 5),
    "what an average counts": lambda op: setattr(first(op, nn.AvgPool2d), "count_include_pad", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    op = MixedOp(4, 1)
    watch = Watch([op])
    assert watch.unchanged([op])
    undo = CHANGES[change](op)
    assert not watch.unchanged([op])
    if undo is not None:
        undo()
        assert watch.unchanged([op])


def test_values_may_change_and_order_may_not():
    ops = [MixedOp(4, 1), MixedOp(4, 1)]
    watch = Watch(ops)
    with torch.no_grad():
        for p in (*ops[0].parameters(), *ops[0].buffers()):
            p.add_(1)
            p.data = p.data.clone()
    assert watch.unchanged(ops)
    assert not watch.unchanged(ops[::-1]) and not watch.unchanged(ops[:1])
    assert not watch.unchanged(copy.deepcopy(ops))


@needs_kernels
def test_a_network_is_read_once(monkeypatch):
    made = []
    prepare = programs.Prepared.__init__
    monkeypatch.setattr(
        programs.Prepared, "__init__", lambda self, *args: made.append(args) or prepare(self, *args)
    )
    torch.manual_seed(0)
    model = Network(3, 4, 3, nn.CrossEntropyLoss(), 2, 2, backend="cpu")
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model._loss(x, y).backward()
        sgd.step()
    assert len(made) == 4  # the stem and three cells
    model._loss(x[:1], y[:1])
    assert len(made) == 8
    model._loss(x, y)
    assert len(made) == 8
    first(model.cells[1], nn.BatchNorm2d).eps = 1e-3
    model._loss(x, y)
    assert len(made) == 9
    for n in range(3, 3 + cnn._MOST_KEPT):
        model._loss(torch.randn(n, 3, 8, 8), torch.zeros(n, dtype=torch.int64))
    assert len(cnn._Reading._known[model.cells[0]][0]._found) < cnn._MOST_KEPT
    model._loss(x, y)
    made[:] = [None] * 9
    other = copy.deepcopy(model)
    assert torch.equal(other._loss(x, y), model._loss(x, y)) and len(made) == 13


@needs_kernels
def test_what_was_read_goes_with_the_network():
    gc.collect()
    before = len(cnn._Reading._known)
    model = Network(3, 4, 1, nn.CrossEntropyLoss(), 2, 2, backend="cpu")
    model(torch.randn(2, 3, 8, 8))
    assert len(cnn._Reading._known) == before + 2
    del model
    gc.collect()
    assert len(cnn._Reading._known) == before


@needs_kernels
def test_an_evaluation_between_leaves_what_was_read():
    model = Network(3, 4, 1, nn.CrossEntropyLoss(), 2, 2, backend="cpu")
    x = torch.randn(2, 3, 8, 8)

    def reading():
        model(x)
        return cnn._Reading._known[model.cells[0]][0]

    trained = reading()
    for _ in range(2):
        model.eval()
        evaluated = reading()
        assert evaluated is not trained and reading() is evaluated
        model.train()
        assert reading() is trained
    first(model.cells[0], nn.BatchNorm2d).eps = 1e-3
    assert reading() not in (trained, evaluated) and len(cnn._Reading._known[model.cells[0]]) == 2
