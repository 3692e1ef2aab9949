"""Partial channels: some of the channels mixed, the others passed, shuffled; and what only looks like it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_accelerate import assert_same, copied, iterations, whatever_the_size  # noqa: F401 - a fixture
from torch import nn

import dartsfast
from bench.miniatures import Partial, Stacked, relu_conv_norm, shuffled
from dartsfast.backends import availability
from dartsfast.fused.programs import Prepared

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


def mixed(edge, x, weights):
    return sum(w * op(x) for w, op in zip(weights, edge.ops, strict=True))


def edge(forward):
    """Return an edge of stride 1 with this forward of edge, x and weights."""
    return type("Edge", (Partial,), {"forward": forward})


def split(x):
    return x[:, : x.shape[1] // 4], x[:, x.shape[1] // 4 :]


def halves(x, groups):
    return x.view(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def beside(rearrange):
    def forward(self, x, weights):
        first, rest = split(x)
        return rearrange(torch.cat([mixed(self, first, weights), rest], dim=1))

    return edge(forward)


def permuted(x):
    return halves(x, 4).permute(0, 2, 1, 3, 4).reshape(x.shape)


def not_swapped(x):
    return halves(x, 4).transpose(1, 2).transpose(1, 2).contiguous().view(x.shape)


def rows_swapped(x):
    return halves(x, 4).transpose(1, 3).contiguous().view(x.shape)


def used_twice(x):
    found = shuffled(x, 4)
    return found + found.mean()


def used_before(x):
    return shuffled(x, 4) + x.mean()


def by_data(x):
    return shuffled(x, 4) * x.data.abs().mean()


def hooked(x):
    found = shuffled(x, 4) + 0.0
    if found.requires_grad:
        found.register_hook(lambda g: 2 * g)
    return found


def passed_first(self, x, weights):
    first, rest = split(x)
    return shuffled(torch.cat([rest, mixed(self, first, weights)], dim=1), 4)


def overlapping(self, x, weights):
    first, _ = split(x)
    return shuffled(torch.cat([mixed(self, first, weights), x[:, : 3 * first.shape[1]]], dim=1), 4)


def last_mixed(self, x, weights):
    rest, last = x[:, : 3 * x.shape[1] // 4], x[:, 3 * x.shape[1] // 4 :]
    return shuffled(torch.cat([mixed(self, last, weights), rest], dim=1), 4)


def whole_too(self, x, weights):
    first, rest = split(x)
    return shuffled(torch.cat([mixed(self, first, weights), rest], dim=1), 4) + 0.1 * x


def rest_changed(self, x, weights):
    own = 2.0 * x
    first, rest = split(own)
    rest += torch.ones(rest.shape, dtype=rest.dtype)
    return shuffled(torch.cat([mixed(self, first, weights), rest], dim=1), 4) + 0.1 * own


def channels_of_a_result_changed(self, x, weights):
    first, rest = split(x)
    found = mixed(self, first, weights)
    some = found[:, :1]
    some *= 3.0
    return shuffled(torch.cat([found, rest], dim=1), 4)


def mixed_used_twice(self, x, weights):
    first, rest = split(x)
    found = mixed(self, first, weights)
    return shuffled(torch.cat([found, rest], dim=1), 4) * found.std()


class OfTwoWidths(Partial):
    """What passes is an operation's too, of more channels."""

    def __init__(self, C, stride, passing):
        super().__init__(C, stride)
        self.passing = passing(C - C // 4)

    def forward(self, x, weights):
        first, rest = split(x)
        return shuffled(torch.cat([mixed(self, first, weights), 0.5 * self.passing(rest)], dim=1), 4)


ONE_PROGRAM = {
    "view, transpose": Partial,
    "permute, reshape": beside(permuted),
    "channel_shuffle": beside(lambda x: F.channel_shuffle(x, 4)),
}
OTHERS = {
    "no shuffle": beside(lambda x: x),
    "two groups": beside(lambda x: shuffled(x, 2)),
    "eight groups": beside(lambda x: shuffled(x, 8)),
    "shuffled after relu": beside(lambda x: shuffled(F.relu(x), 4)),
    "shuffled twice": beside(lambda x: shuffled(shuffled(x, 4), 4)),
    "swapped back": beside(not_swapped),
    "rows swapped": beside(rows_swapped),
    "used twice": beside(used_twice),
    "used before": beside(used_before),
    "by data": beside(by_data),
    "a hook": beside(hooked),
    "passed first": edge(passed_first),
    "overlapping": edge(overlapping),
    "last mixed": edge(last_mixed),
    "whole too": edge(whole_too),
    "rest changed": edge(rest_changed),
    "channels of a result changed": edge(channels_of_a_result_changed),
    "mixed used twice": edge(mixed_used_twice),
    "an identity passes": lambda C, stride: OfTwoWidths(C, stride, lambda rest: nn.Identity()),
    "a convolution passes": lambda C, stride: OfTwoWidths(C, stride, lambda C: relu_conv_norm(C, C)),
}


def one_cell(kind, C=8):
    torch.manual_seed(1)
    model = Stacked(kind, C=C, betas=True)
    model.cells = model.cells[:1]
    model.classifier = nn.Linear(2 * C, 10)
    return model


def programs(monkeypatch):
    counted = []
    monkeypatch.setattr(
        Prepared,
        "__call__",
        lambda self, *args, run=Prepared.__call__: counted.append(self) or run(self, *args),
    )
    return counted


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("name", ONE_PROGRAM)
def test_a_cell_of_partial_channels_is_one_program(name, memory, monkeypatch):
    model = one_cell(ONE_PROGRAM[name]).doubled()
    fast = copied(model)
    dartsfast.accelerate(fast, memory=memory, verify=False)
    want, counted = iterations(model, images=5), programs(monkeypatch)
    assert_same(want, iterations(fast, images=5))
    assert len(counted) == 2  # iterations


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_partial_channels(name):
    model = one_cell(OTHERS[name]).doubled()
    fast = copied(model)
    dartsfast.accelerate(fast, verify=False)
    assert_same(iterations(model, images=6), iterations(fast, images=6))


def test_a_reduction_is_three_programs(monkeypatch):
    torch.manual_seed(1)
    model = Stacked(Partial, C=8, betas=True)
    dartsfast.accelerate(model, verify=False)
    counted = programs(monkeypatch)
    model(torch.randn(2, 3, 16, 16))
    assert len(counted) == 1 + 3 + 3


def test_channels_of_ordinary_tensors_are_read_once(monkeypatch):
    model = one_cell(Partial)
    for name in ("pre0", "pre1"):
        setattr(model.cells[0], name, nn.Sequential(nn.Conv2d(24, 8, 1), nn.Tanh()))
    model = model.doubled()
    fast = copied(model)
    dartsfast.accelerate(fast, verify=False)
    want, counted = iterations(model, images=6), programs(monkeypatch)
    assert_same(want, iterations(fast, images=6))
    assert [len(prepared.forward.setting.inputs) for prepared in counted] == [4, 4]


def test_channels_of_a_cell_changed_in_place():
    def change(cell, given, out):
        some = out[:, 1:3]
        some *= 3.0
        return out

    model = one_cell(Partial).doubled()
    fast = copied(model)
    dartsfast.accelerate(fast, verify=False)
    for one in (model, fast):
        one.cells[0].register_forward_hook(change)
    assert_same(iterations(model, images=6), iterations(fast, images=6))


def on_channels(x, op):
    return op(x[:, :2])


def beside_channels(x, op):
    return torch.cat([op(torch.ones(2, 2, 6, 6, dtype=x.dtype)), x[:, :2]], dim=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as found is let go
@pytest.mark.parametrize("use", [on_channels, beside_channels])
def test_channels_changed_after_they_were_used_are_refused(use):
    model = one_cell(Partial).doubled()
    dartsfast.accelerate(model, verify=False)
    x = model.cells[0].pre0(torch.randn(2, 24, 6, 6, dtype=torch.float64))
    found = use(x, model.cells[0].edges[0].ops[4])
    x *= 3.0
    with pytest.raises(RuntimeError, match="changed in place"):
        found.sum()


def test_copies_and_restored_models_of_partial_channels():
    model = one_cell(Partial).doubled()
    fast = copied(model)
    dartsfast.accelerate(fast, verify=False)
    iterations(fast, images=6)
    other = copy.deepcopy(fast)
    for one in (other, model):
        one.load_state_dict({name: 1.5 * value for name, value in fast.state_dict().items()})
        one.arch = [a.detach().clone().requires_grad_() for a in fast.arch]
    assert_same(iterations(copied(model), images=6), iterations(other, images=6))
    dartsfast.restore(fast)
    model.load_state_dict(fast.state_dict())
    again = copied(fast)
    model.arch = [a.detach().clone().requires_grad_() for a in fast.arch]
    for a, b in zip(iterations(model, images=6), iterations(again, images=6), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
