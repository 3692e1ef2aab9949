"""Models that know nothing of kernels compute the same with them: loss, gradients, statistics."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dartsfast
from bench.miniatures import (
    Dense,
    Halve,
    Mixed,
    Nothing,
    Partial,
    Same,
    Separable,
    Stacked,
    pooling,
)
from dartsfast.backends import availability

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


@pytest.fixture(autouse=True)
def whatever_the_size(monkeypatch):
    """Have small images computed on kernels, so that tests are of these."""
    monkeypatch.setattr("dartsfast.descendants.models._FEWEST_VALUES", 0)
    monkeypatch.setattr("dartsfast.descendants.models._LEAST_WORK", 0)


class Masked(Mixed):
    """Skips operations of weight 0, as pruning code does."""

    def forward(self, x, weights):
        out = 0
        for w, op in zip(weights, self.ops, strict=True):
            if w != 0:
                out += w * op(x)
        return out


class Sampled(Mixed):
    """One operation an edge, scaled by its straight-through weight; the others add their weights (GDAS)."""

    def forward(self, x, weights):
        hard, chosen = weights
        return sum(
            w * op(x) if k == chosen else w for k, (w, op) in enumerate(zip(hard, self.ops, strict=True))
        )


class Switched(nn.Module):
    """A part of the operations, the identity followed by dropout (P-DARTS)."""

    count = 0

    def __init__(self, C, stride):
        super().__init__()
        Switched.count += 1
        every = [Nothing(stride), pooling("maximum", C, stride), Separable(C, 3, stride)]
        skip = nn.Sequential(Same() if stride == 1 else Halve(C, C), nn.Dropout(0.3))
        self.m_ops = nn.ModuleList([every[k] for k in range(3) if (Switched.count + k) % 3] + [skip])

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self.m_ops, strict=True))


class Listed(Mixed):
    """Weights as a list of floats' tensors, summed in a comprehension and by torch.add."""

    def forward(self, x, weights):
        outs = [torch.mul(op(x), w) for op, w in zip(self.ops, weights, strict=True)]
        total = outs[0]
        for out in outs[1:]:
            total = torch.add(total, out)
        return total


def masked_rows(alphas):
    weights = F.softmax(alphas, dim=-1)
    return weights * (weights >= weights.sort(dim=-1).values[:, 3:4])


def sampled_rows(alphas):
    soft = F.softmax(alphas, dim=-1)
    chosen = (
        alphas + torch.linspace(-3, 3, 8 * len(alphas), dtype=alphas.dtype).sin().view_as(alphas)
    ).argmax(-1)
    hard = F.one_hot(chosen, 8).to(soft) - soft.detach() + soft
    return list(zip(hard, chosen.tolist(), strict=True))


def dirichlet_rows(alphas):
    return torch.distributions.Dirichlet(F.elu(alphas) + 1).rsample()


MINIATURES = {
    "sums of all": lambda: Stacked(),
    "partial channels, shuffled, betas": lambda: Stacked(Partial, C=8, betas=True),
    "switches and dropout": lambda: Stacked(Switched, ops=3, layers=2),
    "masks": lambda: Stacked(Masked, rows=masked_rows),
    "one operation an edge": lambda: Stacked(Sampled, rows=sampled_rows),
    "lists of weights": lambda: Stacked(Listed, rows=lambda a: [list(F.softmax(row, -1)) for row in a]),
    "Dirichlet rows": lambda: Stacked(Partial, C=8, rows=dirichlet_rows),
    "dense cells": lambda: Dense(),
    "a node an edge": lambda: Stacked(nodes=1),
}


def copied(model):
    found = copy.deepcopy(model)
    found.arch = [a.detach().clone().requires_grad_() for a in model.arch]
    return found


def iterations(model, count=2, images=16):
    """Return losses, gradients and buffers of steps of plain gradient descent."""
    torch.manual_seed(3)
    found = []
    for _ in range(count):
        x, y = torch.randn(2, 3, images, images, dtype=torch.float64), torch.randint(0, 10, (2,))
        loss = F.cross_entropy(model(x), y)
        tensors = [*model.parameters(), *model.arch]
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        found += [loss.detach(), *gradients, *(b.clone() for b in model.buffers())]
        with torch.no_grad():
            for t, g in zip(tensors, gradients, strict=True):
                t.sub_(0.1 * g if g is not None else 0.0)
    return found


def assert_same(a, b, tolerance=1e-12):
    assert [t is None for t in a] == [t is None for t in b]
    for s, t in zip(a, b, strict=True):
        if s is not None:
            torch.testing.assert_close(t, s, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("name", MINIATURES)
def test_a_structure_computes_the_same(name, memory):
    torch.manual_seed(1)
    model = MINIATURES[name]().doubled()
    fast = copied(model)
    report = dartsfast.accelerate(fast, memory=memory)
    assert report.fused.total() > 8
    assert_same(iterations(model), iterations(fast))
