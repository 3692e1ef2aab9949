"""PC-DARTS on kernels: a program a cell, and what runs where it is none."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from op_backends import needs_kernels
from torch import nn

from dartsfast import restore
from dartsfast.cnn.operations import Zero
from dartsfast.fused.programs import Prepared
from dartsfast.methods.eigenvalue import monitored
from dartsfast.methods.pc_darts import PCDARTS

pytestmark = needs_kernels


def network(**options):
    torch.manual_seed(1)
    return PCDARTS(8, 2, 3, F.cross_entropy, backend="cpu", share=4, **options)


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype), torch.tensor(
        [0, 1, 1, 0]
    )


def on_modules(model):
    twin = copy.deepcopy(model)
    restore(twin)
    twin._storage_dtype = None
    for part in (twin, *twin.cells):
        part._backend = "reference"
    return twin


def gradients(model, x, y):
    tensors = [*model.parameters(), *model.arch_parameters()]
    return torch.autograd.grad(F.cross_entropy(model(x), y), tensors, allow_unused=True)


def assert_near(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        there = torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b
        assert (there[0] - there[1]).norm() <= tolerance * (there[1].norm() + 1e-6)


@pytest.fixture
def programs(monkeypatch):
    """Return the programs that run."""
    ran, call = [], Prepared.__call__
    monkeypatch.setattr(
        Prepared, "__call__", lambda self, *args, **kw: ran.append(self) or call(self, *args, **kw)
    )
    return ran


def test_a_cell_is_a_program_however_much_is_kept(programs):
    x, y = batch(torch.float64)
    found = {}
    for memory in ("store", "recompute", "cell"):
        model = network(memory=memory).double()
        found[memory] = gradients(model, x, y)
        # The stem, once more where nothing is kept of it; of every cell two inputs, and the nodes.
        assert len(programs) == 1 + 3 * 3 + (memory == "cell")
        programs.clear()
    assert_near(found["store"], gradients(on_modules(model), x, y), 1e-9)
    for memory in ("recompute", "cell"):
        assert all(torch.equal(a, b) for a, b in zip(found[memory], found["store"], strict=True))


def hooked(model):
    model.cells[1]._ops[3].register_forward_hook(lambda module, args, out: 2 * out)


def of_ones_own(model):
    model.cells[0]._ops[3].mixed._ops[1] = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Softplus())


def without_operations(model):
    """Nothing is computed of the first channels of an input."""
    for edge, source in zip(model.cells[0]._ops, [*range(2), *range(3), *range(4), *range(5)], strict=True):
        if source == 0:
            edge.mixed._ops = nn.ModuleList(Zero(1) for _ in edge.mixed._ops)


@pytest.mark.parametrize("altered", [hooked, of_ones_own, without_operations])
def test_edges_that_are_no_part_of_a_program_compute_the_same(altered, programs):
    x, y = batch(torch.float64)
    model = network().double()
    gradients(model, x, y)
    altered(model.double())
    model.double()
    programs.clear()
    found = gradients(model, x, y)
    assert len(programs) > 1 + 3 * 3
    assert_near(found, gradients(on_modules(model), x, y), 1e-9)


def test_half_precision_is_of_what_cells_have_beside_these_edges():
    x, y = batch()
    model = network(storage_dtype=torch.bfloat16)
    ours, theirs = (torch.cat([g.flatten() for g in gradients(m, x, y)]) for m in (model, on_modules(model)))
    assert_near([ours], [theirs], 0.1)


def test_partial_channels_on_kernels():
    """No warning, other arithmetic than the modules', and modules where it is differentiated twice."""
    x, y = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network()
        twin = on_modules(model)
        found, wanted = model(x), twin(x)
    assert 0 < (found - wanted).norm() < 1e-5 * wanted.norm()
    assert monitored(model, x, y) == pytest.approx(monitored(twin, x, y), rel=1e-5)
    assert torch.equal(model(x), found)
