"""Convolutions that torch computes, which join the sum of what kernels compute of the same source."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from test_accelerate import assert_same, copied, iterations, whatever_the_size  # noqa: F401 - a fixture
from test_accelerate_traps import C, Every
from torch import nn

import dartsfast
from bench.miniatures import eight
from dartsfast.backends import availability
from dartsfast.descendants import once
from dartsfast.fused.programs import Prepared

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


def conv_norm(norm=None, *, relu=True, size=3, **options):
    pad = options.get("dilation", 1) * (size // 2)
    layers = [nn.ReLU()] if relu else []
    norm = nn.BatchNorm2d(C, affine=False) if norm is None else norm
    return nn.Sequential(*layers, nn.Conv2d(C, C, size, padding=pad, **options), norm)


def affine():
    norm = nn.BatchNorm2d(C, eps=1e-2)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return norm


def resting():
    norm = nn.BatchNorm2d(C)
    norm.track_running_stats = False
    return norm


LIBRARY = {
    "dense": lambda: conv_norm(bias=False),
    "a bias": conv_norm,
    "an affine": lambda: conv_norm(affine()),
    "no relu": lambda: conv_norm(relu=False),
    "dilated, in groups": lambda: conv_norm(size=5, dilation=2, groups=2),
    "reflected": lambda: conv_norm(padding_mode="reflect"),
    "an average over all batches": lambda: conv_norm(nn.BatchNorm2d(C, momentum=None)),
    "no running statistics": lambda: conv_norm(nn.BatchNorm2d(C, track_running_stats=False)),
    "statistics that rest": lambda: conv_norm(resting()),
    "evaluating without statistics": lambda: conv_norm(nn.BatchNorm2d(C, track_running_stats=False)).eval(),
    "evaluating": lambda: conv_norm(affine()).eval(),
}


def weighted(m, x, w):
    return sum(w[k] * op(x) for k, op in enumerate(m.ops))


def by_numbers(m, x, w):
    return sum(0.5 * (w[k] * op(x)) for k, op in enumerate(m.ops)) + m.ops[-1](x)


@pytest.mark.parametrize("use", [weighted, by_numbers])
@pytest.mark.parametrize("name", LIBRARY)
def test_convolutions_of_torch_join_sums(name, use):
    torch.manual_seed(1)
    model = Every(use, [*eight(C, 1), *eight(C, 1), LIBRARY[name]()]).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            nn.init.uniform_(norm.running_mean)
    fast = copied(model)
    report = dartsfast.accelerate(fast)
    assert sum(n for name, n in report.fused.items() if "torch's own" in name) == 1
    assert_same(iterations(model, images=6), iterations(fast, images=6))


def test_they_join_the_program_of_their_source_of_which_relu_is_taken_once(monkeypatch):
    model = Every(weighted, [*eight(C, 1), *eight(C, 1), conv_norm(), conv_norm(size=5)])
    dartsfast.accelerate(model, verify=False)
    joined, taken = [], []
    call, relu = Prepared.__call__, once.rectified._make

    def prepared(self, inputs, weights, extras=(), stored=()):
        joined.append(len(extras))
        return call(self, inputs, weights, extras, stored)

    monkeypatch.setattr(Prepared, "__call__", prepared)
    monkeypatch.setattr(once.rectified, "_make", lambda x: taken.append(x) or relu(x))
    x = torch.randn(2, C, 6, 6, requires_grad=True) * 1
    out = model.use(model, x, torch.rand(18))
    assert out.grad_fn is not None and joined == [2, 0] and len(taken) == 1


def test_what_is_made_once_is_of_one_image_as_it_is():
    twice = once.Once(lambda x: 2 * x)
    x = torch.ones(3, requires_grad=True) * 1
    first = twice(x)
    other = x + 1
    beside = twice(other)
    assert twice(x) is first and first.requires_grad and twice(other) is beside  # in turn
    with torch.no_grad():
        other = twice(x)
        assert not other.requires_grad and twice(x) is other
        assert twice(other) is not other
        x += 1
    assert torch.equal(twice(x), 2 * x) and twice(x).requires_grad
    changed = twice(x)
    changed.mul_(5)
    assert torch.equal(twice(x), 2 * x)
    left = weakref.ref(twice(x))
    del first, other, changed
    gc.collect()
    assert left() is None  # nothing but its users holds it


def test_passes_over_one_image_have_graphs_of_their_own():
    relu = once.Once(torch.relu)
    x = torch.randn(5, requires_grad=True)
    a, b = relu(x), relu(x)
    (found,), (again,) = torch.autograd.grad(a.sum(), x), torch.autograd.grad(b.sum(), x)
    assert torch.equal(found, (x > 0).float()) and torch.equal(again, found)


def test_an_image_in_another_order_is_laid_out_once_and_parts_of_it_are_not():
    x = torch.randn(2, C, 6, 5, requires_grad=True) * 1
    found = once.laid_out(x)
    assert found.is_contiguous(memory_format=torch.channels_last) and torch.equal(found, x)
    assert once.laid_out(x) is found and once.laid_out(found) is found
    part = x[:, :2]
    assert once.laid_out(part) is part


def test_reductions_and_other_sizes():
    torch.manual_seed(1)
    halved = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, 2, 1), nn.BatchNorm2d(C))
    cut = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))
    ops = [*eight(C, 2), *eight(C, 2), halved]

    def use(m, x, w):
        return (
            sum(w[k] * op(x) for k, op in enumerate(m.ops[:17]))
            + F.pad(m.ops[17](x), (0, 2, 0, 2))[:, :, ::2, ::2]
        )

    model = Every(use, [*ops, cut]).double()
    fast = copied(model)
    report = dartsfast.accelerate(fast)
    assert report.fused.total() == 17 and report.ordinary.total() == 1
    assert_same(iterations(model, images=6), iterations(fast, images=6))


def test_a_model_of_nothing_else_is_left_alone():
    assert not dartsfast.accelerate(Every(weighted, [conv_norm() for _ in range(9)])).fused
