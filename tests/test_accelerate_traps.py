"""What code of others does with the results of operations, and what operations may look like."""

import pytest
import torch
import torch.nn.functional as F
from test_accelerate import assert_same, copied, iterations, whatever_the_size  # noqa: F401 - a fixture
from torch import nn
from torch.utils.checkpoint import checkpoint

import dartsfast
from bench.miniatures import Same, Separable, eight
from dartsfast.backends import availability
from dartsfast.descendants.recognise import Recognised, recognise

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


class Residual(Separable):
    def forward(self, x):
        return self.body(x) + x


class Noisy(Separable):
    def forward(self, x):
        return self.body(x) + 1e-2 * torch.randn_like(x)


class Lucky(Separable):
    def forward(self, x):
        return self.body(x) if torch.rand(()) < 2 else x


class Counting(Separable):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.body(x)


class Flagged(Separable):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.off = False

    def forward(self, x):
        return x if self.off else self.body(x)


class Branching(Separable):
    def forward(self, x):
        return self.body(x) if x.mean() > 0 else x


def edited(module, **attributes):
    for path, value in attributes.items():
        owner, _, name = path.replace("__", ".").rpartition(".")
        setattr(module.get_submodule(owner), name, value)
    return module


def hooked(module):
    module.body[1].register_forward_hook(lambda *_: None)
    return module


C = 4
ORDINARY = {
    "adds its input": lambda: Residual(C, 3, 1),
    "adds noise": lambda: Noisy(C, 3, 1),
    "draws a number": lambda: Lucky(C, 3, 1),
    "counts its calls": lambda: Counting(C, 3, 1),
    "looks at values": lambda: Branching(C, 3, 1),
    "in place": lambda: edited(Separable(C, 3, 1), body__0=nn.ReLU(inplace=True)),
    "a hook within": lambda: hooked(Separable(C, 3, 1)),
    "another activation": lambda: edited(Separable(C, 3, 1), body__0=nn.ReLU6()),
    "a norm with an affine": lambda: edited(Separable(C, 3, 1), body__3=nn.BatchNorm2d(C)),
    "a bias": lambda: edited(Separable(C, 3, 1), body__2=nn.Conv2d(C, C, 1)),
    "dense, of another size": lambda: nn.Sequential(
        nn.Conv2d(C, C, 2), nn.BatchNorm2d(C), nn.ZeroPad2d((0, 1, 0, 1))
    ),
    "another padding": lambda: edited(Separable(C, 3, 1), body__1__padding_mode="reflect"),
    "an average that counts padding": lambda: nn.Sequential(
        nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(C, affine=False)
    ),
    "two by two": lambda: nn.Sequential(nn.MaxPool2d(2, 2), nn.BatchNorm2d(C, affine=False)),
    "dropout after it": lambda: nn.Sequential(Same(), nn.Dropout(0.2)),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_another_operation_is_ordinary(name):
    assert isinstance(recognise(ORDINARY[name]()), str)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_candidate_is_recognised(stride):
    assert all(isinstance(recognise(op), Recognised) for op in eight(C, stride))
    inner = edited(
        Separable(C, 3, stride), body__4=nn.ReLU(inplace=True)
    )  # of a norm's result: nobody sees it
    assert isinstance(recognise(inner), Recognised)


class Every(nn.Module):
    """Operations, and what code does with them."""

    def __init__(self, use, ops=None):
        super().__init__()
        self.ops = nn.ModuleList(ops or [*eight(C, 1), *eight(C, 1)])
        self.first = nn.Conv2d(3, C, 3, padding=1)
        self.use = use
        self.arch = [torch.rand(len(self.ops), dtype=torch.float64).requires_grad_()]

    def forward(self, x):
        return self.use(self, self.first(x), self.arch[0]).mean((2, 3)).repeat(1, 3)


def used_twice(m, x, w):
    found = [w[k] * op(x) for k, op in enumerate(m.ops)]
    a, b = sum(found[:6]), sum(found[6:])
    return a + b + a * b + 0.5 * a


def one_result_twice(m, x, w):
    y = m.ops[4](x)
    return sum(w[k] * op(x) for k, op in enumerate(m.ops) if k != 4) + w[4] * y + y


def part_of_a_sum_afterwards(m, x, w):
    y = m.ops[4](x)
    total = sum(w[k] * op(x) for k, op in enumerate(m.ops) if k != 4) + w[4] * y
    return total.tanh() + y.tanh()


def in_place(m, x, w):
    out = m.ops[4](x)
    out += w[4] * m.ops[5](x)
    out *= 2
    out.mul_(0.5).add_(m.ops[6](x))
    y = m.ops[1](x)
    z = 2.0 * y
    y += m.ops[2](x)
    return out + z + y


def identity_in_place(m, x, w):
    x = x * 1
    y = m.ops[3](x)
    y += 1.0
    return x + sum(w[k] * op(x) for k, op in enumerate(m.ops))


def shared_module(m, x, w):
    a = sum(w[k] * op(x) for k, op in enumerate(m.ops))
    b = sum(w[k] * op(2 * x) for k, op in enumerate(m.ops))
    return a + 3 * b + m.ops[4](a)


def a_module_twice_backwards(m, x, w):
    first = m.ops[4](x)
    second = m.ops[4](2 * x + 1)
    return second.tanh() + first.exp()


def discarded(m, x, w):
    outs = [op(x) for op in m.ops]
    return outs[4] * w[4] + outs[5]


def zeros_alone(m, x, w):
    y = torch.tanh(x)
    return w[0] * m.ops[0](y) + w[4] * m.ops[4](x)


def only_zeros(m, x, w):
    return w[0] * m.ops[0](x) + w[8] * m.ops[8](x)


def no_gradient_within(m, x, w):
    with torch.no_grad():
        y = w[4] * m.ops[4](x)
    return y + w[5] * m.ops[5](x)


def odd_weights(m, x, w):
    a = w[4].view(1, 1, 1, 1) * m.ops[4](x) + m.ops[5](x) * 2 + m.ops[6](x) * True
    return a + w[:4].view(1, -1, 1, 1) * m.ops[7](x) + m.ops[1](x) / 3 - m.ops[2](x)


def stacked(m, x, w):
    return (torch.stack([op(x) for op in m.ops]) * w.view(-1, 1, 1, 1, 1)).sum(0)


def checkpointed(reentrant):
    def use(m, x, w):
        def node(x, w):
            return sum(w[k] * op(x) for k, op in enumerate(m.ops))

        return checkpoint(node, x, w, use_reentrant=reentrant)

    return use


def in_a_loop(m, x, w):
    total = 0
    for k, op in enumerate(m.ops):
        total += w[k] * op(x)
        total = total * 0.9
    return total


def of_each_other(m, x, w):
    for k, op in enumerate(m.ops):
        x = w[k] * op(x) + x
    return x


def two_strides(m, x, w):
    return m.ops[0](x) + m.ops[1](x)[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)


def nodes(m, x, w):
    pre = m.ops[4](x)
    a = sum(w[k] * m.ops[k](x) for k in range(4)) + sum(w[k] * m.ops[k](pre) for k in range(8, 12))
    b = w[5] * m.ops[5](a) + w[6] * m.ops[6](pre)
    return pre, a, b


def a_cell(m, x, w):
    _, a, b = nodes(m, x, w)
    return torch.cat([a, b], dim=1)


def a_cell_in_place(m, x, w):
    out = a_cell(m, x, w)
    out += 1.0
    out[:, :1] = 0.5
    F.relu(out.mul_(2.0), inplace=True)
    return torch.cat([out, out.tanh()], 1)


def states_of_a_cell_afterwards(m, x, w):
    pre, a, b = nodes(m, x, w)
    out = torch.cat([a, b], 1).tanh()
    return out * torch.cat([b, a], 1) + torch.cat((pre.tanh(), a.exp()), dim=1)


def states_of_a_cell_before(m, x, w):
    _, a, b = nodes(m, x, w)
    c = a.tanh() + m.ops[7](a)
    return torch.cat([a, b, m.ops[12](c), c], 1) + torch.cat([a, b, b, 2 * b], 1)


def a_chain(m, x, w):
    for op in (m.ops[4], *[m.ops[3]] * 40, m.ops[5], m.ops[6]):
        x = 1.1 * op(x)
    return x


def a_cell_of_a_cell(m, x, w):
    _, a, b = nodes(m, x, w)
    first = torch.cat([a, b], 1)
    c = m.ops[12](first[:, :4]) + m.ops[13](first[:, 4:])
    return torch.cat([c, m.ops[14](c)], 1) + first


USES = {
    "a cell": a_cell,
    "a cell in place": a_cell_in_place,
    "states afterwards": states_of_a_cell_afterwards,
    "states before": states_of_a_cell_before,
    "a chain": a_chain,
    "a cell of a cell": a_cell_of_a_cell,
    "sums used twice": used_twice,
    "a result used twice": one_result_twice,
    "a part of a sum afterwards": part_of_a_sum_afterwards,
    "in place": in_place,
    "an identity in place": identity_in_place,
    "modules twice": shared_module,
    "a module twice, backwards": a_module_twice_backwards,
    "results that nobody uses": discarded,
    "zeros of another source": zeros_alone,
    "zeros only": only_zeros,
    "without gradients": no_gradient_within,
    "weights of every form": odd_weights,
    "a stack": stacked,
    "a checkpoint": checkpointed(False),
    "in a loop": in_a_loop,
    "of each other": of_each_other,
    "a view": two_strides,
}


@pytest.mark.parametrize("name", USES)
def test_whatever_is_done_with_results(name):
    torch.manual_seed(1)
    model = Every(USES[name]).double()
    fast = copied(model)
    dartsfast.accelerate(fast)
    assert_same(iterations(model, images=6), iterations(fast, images=6))


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_operations_join_sums(name):
    torch.manual_seed(1)
    op = ORDINARY[name]()
    if name == "two by two":
        op = nn.Sequential(op, nn.Upsample(scale_factor=2))

    def use(m, x, w):
        return sum(w[k] * op(x * 1) for k, op in enumerate(m.ops))

    model = Every(use, [*eight(C, 1), op, *eight(C, 1)]).double()
    fast = copied(model)
    report = dartsfast.accelerate(fast)
    assert 16 <= report.fused.total() < 18
    assert_same(iterations(model, images=6), iterations(fast, images=6))
