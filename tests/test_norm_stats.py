"""Batch norm from channel statistics: the oracle's bits, stock batch norm's numbers, and good manners."""

import pytest
import torch
from comparisons import assert_close, same_bits
from op_backends import assert_agrees, needs_kernels
from op_backends import triton_ran as triton_ran  # a fixture
from op_calls import call
from op_cases import NORMS, Norms
from op_sampler import Sampler
from torch import nn

import dartsfast.ops as ops
from dartsfast.errors import InputError
from dartsfast.fused.edge import Edge, Stage
from dartsfast.fused.forward import Node, Setting
from dartsfast.fused.programs import Prepared

kernels = torch.ops.dartsfast
pytestmark = needs_kernels
runs_kernels = pytest.mark.usefixtures("triton_ran")
CALLS = [pytest.param(*one, id=one[0]) for case in (Norms(3, 5), Norms(2, 4, None)) for one in case.calls()]


@runs_kernels
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_float32_has_the_bits_of_the_oracle(case):
    for name, args in case.calls():
        assert_agrees(name, args)


def normalised(norms, x):
    """Return the sum of what batch norms make of an image [N, H, W, C], [N, C, H, W], by a program."""
    weight = torch.eye(x.shape[-1], dtype=x.dtype)[..., None, None]
    edge = Edge(1, tuple(range(len(norms))), relu=False, single=[Stage((weight,), 1, norm) for norm in norms])
    weights = torch.ones(1, len(norms), dtype=x.dtype)
    setting = Setting((tuple(x.shape),), tuple(weights.shape), x.dtype, x.device, "store", None, True)
    return Prepared([Node([(0, edge, 0)])], 1, setting)([x], weights).permute(0, 3, 1, 2)


@runs_kernels
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"momentum": 0.7, "eps": 0.1}, {"track_running_stats": False}],
    ids=str,
)
def test_modules_move_and_normalise_as_stock_ones_do(options, training):
    sampler = Sampler(torch.float64)
    ours, stock = ([nn.BatchNorm2d(5, affine=False, **options).double() for _ in range(3)] for _ in range(2))
    for norm in (*ours, *stock):
        norm.train(training)
    for _ in range(3):
        x = sampler.tensor(2, 3, 4, 5)
        assert_close(normalised(ours, x), sum(norm(x.permute(0, 3, 1, 2)) for norm in stock))
    for a, b in zip(ours, stock, strict=True):
        assert a.state_dict().keys() == b.state_dict().keys()
        for key, value in a.state_dict().items():
            torch.testing.assert_close(value, b.state_dict()[key], rtol=1e-14, atol=0)


@runs_kernels
def test_modules_of_several_kinds_are_each_their_own():
    def made():
        one = nn.BatchNorm2d(5, affine=False, eps=0.1), nn.BatchNorm2d(5, affine=False, momentum=0.5)
        return [norm.double() for norm in (*one, nn.BatchNorm2d(5, affine=False).eval())]

    ours, stock = made(), made()
    x = Sampler(torch.float64).tensor(2, 3, 4, 5)
    assert_close(normalised(ours, x), sum(norm(x.permute(0, 3, 1, 2)) for norm in stock))
    for a, b in zip(ours, stock, strict=True):
        assert_close(list(a.buffers()), list(b.buffers()))
    assert [norm.num_batches_tracked.item() for norm in ours] == [1, 1, 0]


@runs_kernels
def test_the_coefficients_give_batch_norms_gradient():
    z = Sampler(torch.float64).tensor(4, 3, 5, 6).requires_grad_()
    g, w = Sampler(torch.float64, seed=1).tensor(4, 3, 5, 6), torch.tensor([0.3], dtype=torch.float64)
    mu, variance = z.detach().mean((0, 1, 2)), z.detach().var((0, 1, 2), correction=0)
    for own in (True, False):
        norm = nn.BatchNorm2d(6, affine=False, eps=1e-300).double().train(own)
        norm.running_mean, norm.running_var = mu.clone(), variance.clone()
        y = norm(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        (wanted,) = torch.autograd.grad((w * y * g).sum(), z)
        rho = variance.rsqrt()
        means = g.mean((0, 1, 2)), (g * (z.detach() - mu) * rho).mean((0, 1, 2))
        args = *(mean[None] for mean in means), torch.stack([mu, rho])[None], w, torch.tensor([float(own)])
        ((m, center, r, k),) = ops.norm_stats_backward(*(t.double() for t in args))
        assert_close(k * ((g - m) - (z.detach() - center) * r), wanted)


@runs_kernels
@pytest.mark.parametrize(("name", "args"), CALLS)
def test_opcheck(name, args):
    torch.library.opcheck(getattr(kernels, name).default, args)


@runs_kernels
def test_compiled_equals_eager():
    def both(stats, mean, var, batches):
        mean, var, batches = ([t.clone() for t in moved] for moved in (mean, var, batches))
        norm = kernels.norm_stats_(stats, mean, var, batches, 0.1, 1e-5, 50)
        return norm * 2, mean, var, batches

    args = Norms(3, 5).calls()[0][1][:4]
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(*args), both(*args))


@runs_kernels
def test_written_tensors_have_a_new_version():
    _, args = Norms(2, 3).calls()[0]
    before = [[t._version for t in moved] for moved in args[1:4]]
    kernels.norm_stats_(*args)
    assert [
        [t._version - v for t, v in zip(m, b, strict=True)] for m, b in zip(args[1:4], before, strict=True)
    ] == [[1, 1]] * 3


@pytest.mark.parametrize(("name", "args"), CALLS)
def test_tensors_that_autograd_follows_are_refused(name, args):
    followed = [args[0].clone().requires_grad_(), *args[1:]]
    with pytest.raises(RuntimeError, match=f"dartsfast::{name} has no derivative"):
        call(name, followed)
    with torch.no_grad():
        assert same_bits(call(name, followed), call(name, args))


def test_bad_arguments_have_clear_messages():
    stats, three, seen = torch.ones(1, 2, 3), torch.ones(3), torch.tensor(0)
    moved = [[three], [three], [seen]]
    refused = [
        ((stats[0], [], [], [], 0.1, 1e-5, 9), r"stats must be \[norms, 2, C\], not empty, got \[2, 3\]"),
        ((stats.half(), [], [], [], 0.1, 1e-5, 9), "stats must be float32 or float64"),
        ((stats, *moved, 0.1, 1e-5, 1), "pixels must be at least 2, got 1"),
        ((stats, [three], [], [seen], 0.1, 1e-5, 9), "running_var must hold one tensor a norm"),
        ((stats, [three, three], *moved[1:], 0.1, 1e-5, 9), "running_mean must hold .* got 2 for 1"),
        ((stats, [torch.ones(6)[::2]], *moved[1:], 0.1, 1e-5, 9), "running_mean must be contiguous"),
        ((stats, [three.double()], *moved[1:], 0.1, 1e-5, 9), "running_mean must"),
        ((stats, *moved[:2], [torch.tensor(0.0)], 0.1, 1e-5, 9), "batches must be .*int64"),
    ]
    for args, message in refused:
        with pytest.raises((RuntimeError, InputError), match=message):
            ops.norm_stats_(*args)
    with pytest.raises((RuntimeError, InputError), match=r"g_mean must be \[1, 3\], got \[3\]"):
        ops.norm_stats_backward(three, three[None], stats, None, torch.ones(1))
