"""Modules in states that their constructors do not give them compute as on the reference path."""

import pytest
import torch
from torch import nn

from dartsfast.backends import availability
from dartsfast.cnn.model_search import Network

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


def plain_weight(model):
    conv = model.cells[0]._ops[0]._ops[6].op[2]
    weight = conv.weight.detach().clone()
    del conv.weight
    conv.weight = weight
    yield
    conv.weight = conv.weight.flip(0)


def set_(path, name, value):
    def change(model):
        setattr(model.get_submodule(path), name, value())
        yield

    return change


def shared(model):
    model.cells[0]._ops[1]._ops[4] = model.cells[0]._ops[0]._ops[4]
    yield


def tied(other):
    def change(model):
        ops = model.cells[0]._ops
        ops[other]._ops[6].op[2].weight = ops[0]._ops[6].op[2].weight
        yield

    return change


def shared_norm(model):
    model.cells[0]._ops[2]._ops[1][1] = model.cells[0]._ops[0]._ops[1][1]
    yield


def shared_preprocessing(model):
    model.cells[0].preprocess0 = model.cells[0].preprocess1
    yield


def batch_statistics(model):
    norm = model.cells[0]._ops[0]._ops[6].op[3]
    norm.running_mean = norm.running_var = None
    yield


def averages(model):
    norm = model.cells[0]._ops[0]._ops[6].op[3]
    norm.momentum, norm.num_batches_tracked = None, torch.zeros(()).double()
    yield


NORM = "cells.0._ops.0._ops.6.op.3"
STATES = {
    "a weight as a plain attribute": plain_weight,
    "an operation on two edges": shared,
    "a weight of two edges of a node": tied(1),
    "a weight of edges of two nodes": tied(3),
    "a norm of two edges": shared_norm,
    "one preprocessing": shared_preprocessing,
    "a norm with a weight without affine": set_(
        NORM, "weight", lambda: nn.Parameter(torch.full((4,), 2.0).double())
    ),
    "no running statistics": batch_statistics,
    "no count of batches": set_(NORM, "num_batches_tracked", lambda: None),
    "running statistics with gaps": set_(NORM, "running_mean", lambda: torch.zeros(8).double()[::2]),
    "those of the stem": set_("stem.1", "running_var", lambda: torch.ones(24).double()[::2]),
    "no count of the stem's batches": set_("stem.1", "num_batches_tracked", lambda: None),
    "a count that is no whole number": set_(NORM, "num_batches_tracked", lambda: torch.zeros(()).double()),
    "such a count of the stem's": set_("stem.1", "num_batches_tracked", lambda: torch.zeros(()).double()),
    "averages by such a count": averages,
    "a stem without affine": set_("stem.1", "weight", lambda: None),
}


@pytest.mark.parametrize("state", STATES)
def test_modules_in_odd_states_compute_as_the_reference_does(state):
    found = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(0)
        model = Network(4, 5, 3, nn.CrossEntropyLoss(), 2, 2, backend=backend).double()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64)
        results = []
        changes = STATES[state](model)
        for _ in range(2):
            next(changes, None)
            loss = model._loss(x, torch.tensor([0, 3, 1]))
            leaves = [*model.parameters(), *model.arch_parameters()]
            results += [
                loss,
                *torch.autograd.grad(loss, leaves, allow_unused=True),
                *(b.clone() for b in model.buffers()),
            ]
        found.append(results)
    for a, b in zip(*found, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        else:
            assert (a is None or not a.any()) and (b is None or not b.any())


def test_statistics_in_whole_numbers_are_refused_as_by_stock_modules():
    for backend in ("cpu", "reference"):
        model = Network(4, 5, 3, nn.CrossEntropyLoss(), 2, 2, backend=backend)
        model.get_submodule(NORM).running_mean = torch.zeros(4, dtype=torch.int64)
        with pytest.raises(RuntimeError, match="mixed dtype"):
            model(torch.randn(3, 3, 8, 8))
