"""Which modules the fused operators serve: others run as they are, and compute what they say."""

import pytest
import torch
from torch import nn

from dartsfast.backends import availability
from dartsfast.cnn.model_search import MixedOp, Network
from dartsfast.cnn.operations import DilConv, FactorizedReduce, Identity, SepConv, Zero

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


class Twice(Identity):
    def forward(self, x):
        return 2 * x


class Halves(Zero):
    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride] / 2


def affine(C):
    norm = nn.BatchNorm2d(C)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def replace(kind, place, build):
    """Return a function that replaces layer ``place`` of every ``kind`` in a network."""

    def change(model):
        for module in list(model.modules()):
            if type(module) is kind:
                layers = module.op if hasattr(module, "op") else module
                old = layers[place] if isinstance(place, int) else getattr(layers, place)
                setattr(layers, str(place), build(old))

    return change


def replace_op(kind, build):
    """Return a function that replaces every operation of ``kind`` in a network's mixed operations."""

    def change(model):
        for mixed in [m for m in model.modules() if isinstance(m, MixedOp)]:
            for k, op in enumerate(mixed._ops):
                if type(op) is kind:
                    mixed._ops[k] = build(op)

    return change


def replace_pool(kind, place, build):
    """Return a function that replaces the pool (0) or the norm (1) of every pooling of ``kind``."""

    def change(model):
        for module in list(model.modules()):
            if type(module) is nn.Sequential and type(module[0]) is kind:
                module[place] = build(module[0] if place == 0 else module[1])

    return change


def depthwise(kernel=3, **options):
    def build(old):
        sizes = {"kernel_size": kernel, "stride": old.stride, "groups": old.groups, "bias": False, **options}
        return nn.Conv2d(old.in_channels, old.out_channels, **sizes)

    return build


def pointwise(**options):
    return lambda old: nn.Conv2d(old.in_channels, old.out_channels, 1, **options)


def window(old):
    return nn.Conv2d(old.in_channels, old.out_channels, 3, 2, 1, bias=False)


def leaky(old):
    return nn.LeakyReLU(0.3)


def extend_stem(model):
    model.stem.append(nn.Tanh())


ALTERED = {
    "first relu": replace(SepConv, 0, leaky),
    "second relu": replace(SepConv, 4, leaky),
    "relu of a dilated convolution": replace(DilConv, 0, leaky),
    "instance norm": replace(DilConv, 3, lambda old: nn.InstanceNorm2d(old.num_features)),
    "no norm": replace(DilConv, 3, lambda old: nn.Identity()),
    "norm with affine": replace(SepConv, 7, lambda old: affine(old.num_features)),
    "padding": replace(SepConv, 5, depthwise(padding=1, padding_mode="circular")),
    "oblong kernel": replace(SepConv, 1, depthwise((3, 5), padding=(1, 2))),
    "other dilations": replace(SepConv, 5, depthwise(padding=(1, 2), dilation=(1, 2))),
    "bias": replace(DilConv, 2, pointwise()),
    "groups": replace(DilConv, 2, pointwise(groups=2, bias=False)),
    "an identity that is none": replace_op(Identity, lambda op: Twice()),
    "a none that is something": replace_op(Zero, lambda op: Halves(op.stride)),
    "larger maxima": replace_pool(nn.MaxPool2d, 0, lambda old: nn.MaxPool2d(5, old.stride, 2)),
    "averages with padding": replace_pool(nn.AvgPool2d, 0, lambda old: nn.AvgPool2d(3, old.stride, 1)),
    "averages of another divisor": replace_pool(
        nn.AvgPool2d, 0, lambda old: nn.AvgPool2d(3, old.stride, 1, divisor_override=5)
    ),
    "pool and affine": replace_pool(nn.MaxPool2d, 1, lambda old: affine(old.num_features)),
    "reduction with affine": replace(FactorizedReduce, "bn", lambda old: affine(old.num_features)),
    "reduction without relu": replace(FactorizedReduce, "relu", lambda old: nn.Identity()),
    "reduction of larger windows": replace(FactorizedReduce, "conv_1", window),
    "longer stem": extend_stem,
    "stem with a bias": lambda model: setattr(model.stem, "0", nn.Conv2d(3, 12, 3, padding=1)),
    "stem without affine": lambda model: setattr(model.stem, "1", nn.BatchNorm2d(12, affine=False)),
}  # fmt: skip


def outcome(backend, change):
    """Return loss and gradients of a network that ``change`` has altered, weights from one seed."""
    torch.manual_seed(0)
    model = Network(4, 5, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2, backend=backend)
    change(model)
    model = model.double()
    assert model.backend == backend
    x, y = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.randint(5, (3,))
    loss = model._loss(x, y)
    loss.backward()
    named = [("loss", loss.detach()), *((n, p.grad) for n, p in model.named_parameters())]
    return dict(named) | {f"alpha {i}": a.grad for i, a in enumerate(model.arch_parameters())}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_altered_modules_compute_what_they_say(change):
    wanted, got = outcome("reference", change), outcome("cpu", change)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )
    plain = outcome("reference", lambda model: None)
    assert wanted.keys() != plain.keys() or not torch.equal(wanted["loss"], plain["loss"])
