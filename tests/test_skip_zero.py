"""Operations of weight 0 that are not computed: against the same sum on the network's modules, float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from op_backends import needs_kernels
from test_methods import forward, gap
from torch import nn

from dartsfast import restore
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError


def skipping(edge, x, row):
    found = [w * op(x) for w, op in zip(row, edge._ops, strict=True) if w != 0]
    return sum(found) if found else torch.zeros_like(x[:, :, :: edge.stride, :: edge.stride])


def network(backend, **options):
    torch.manual_seed(0)
    model = Network(4, 3, 3, nn.CrossEntropyLoss(), backend=backend, skip_zero=True, **options).double()
    keep = (torch.rand(2, 14, 8) < 0.4).double()
    keep[0, 3] = keep[1, 0] = 0  # an edge with nothing, of stride 1 and 2
    model._adjust = lambda rows, kind: rows * keep[int(kind)]
    return model, keep


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernels)])
def test_what_has_the_weight_zero_takes_no_part(backend):
    model, keep = network(backend)
    twin = copy.deepcopy(model)
    restore(twin)
    twin._backend = "reference"
    x, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(3, (4,))
    for _ in range(2):
        for both in (model, twin):
            for leaf in (*both.parameters(), *both.arch_parameters()):
                leaf.grad = None
        loss = model._loss(x, y)
        loss.backward()
        alphas = twin.arch_parameters()
        rows = {bool(kind): alphas[kind].softmax(-1) * keep[kind] for kind in (0, 1)}
        wanted = F.cross_entropy(forward(twin, x, rows, skipping), y)
        wanted.backward()
        assert gap(loss, wanted) < 1e-12
    pairs = [*zip(model.parameters(), twin.parameters(), strict=True)]
    pairs += [*zip(model.arch_parameters(), alphas, strict=True)]
    assert {a.grad is None for a, _ in pairs} == {True, False}
    for ours, theirs in pairs:
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or gap(ours.grad, theirs.grad) < 1e-10
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-12, atol=1e-12)


@needs_kernels
def test_operations_that_are_computed_are_on_kernels(recwarn):
    model, _ = network("cpu")
    twin = copy.deepcopy(model)
    restore(twin)
    x = torch.randn(4, 3, 8, 8)
    assert not torch.equal(model.float()(x), twin.float()(x))  # the same sums in another order
    assert not [one for one in recwarn if "ordinary modules" in str(one.message)]


def test_another_network_skips_too():
    model, _ = network("reference")
    assert model.new()._skip_zero and type(model.new().cells[0]._ops[0]) is type(model.cells[0]._ops[0])


def test_edges_of_ones_own_know_what_they_skip():
    with pytest.raises(InputError, match="skip_zero is of the usual edges"):
        network("reference", mixed_op=lambda *arguments: nn.Identity())
