"""The Triton kernels of mixed_sum against the oracle."""

import pytest
import torch
from checks import DEVICE, HALVES, MARKS, assert_rounded, assert_sum, oracle, run, spoiled, tensors

import dartsfast.ops
from tests.op_cases import MIXES, ORACLES, SMALL, Mix, assert_close, same_bits

KERNELS = ("mixed_sum",)
# More channels than a tile holds, more branches than a group, and a dense layout of either unit.
CASES = (
    *MIXES,
    *(case for case in SMALL if isinstance(case, Mix)),
    Mix(1, 3, 5, 70, 2, True),
    Mix(2, 3, 3, 8, 17, False),
    Mix(1, 2, 3, 1, 2, True),
)
LARGE = MIXES[5]
pytestmark = MARKS


def zhat(args):
    """Return the normalised branches in float64, [branches, N, H, W, C]."""
    _, z, mean, rstd = args
    branches = zip(z, mean.double(), rstd.double(), strict=True)
    return torch.stack([(x.double() - m) * r for x, m, r in branches])


def assert_means(got, wanted, args):
    """Check the backward's results: sums over pixels, and over pixels and channels."""
    g = args[0].double()
    products = (g * zhat(args)).abs()
    pixels = g[..., 0].numel()
    magnitude = torch.cat([g.abs().mean((0, 1, 2))[None], products.mean((1, 2, 3))])
    assert_sum(got[0], wanted[0], products.sum((1, 2, 3, 4)), g.numel())
    assert_sum(got[1], wanted[1], magnitude, pixels)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_has_the_bits_and_the_sums_of_the_oracle(case, launches, monkeypatch):
    if case is LARGE:  # the interpreter's time is the number of programs
        monkeypatch.setattr("dartsfast.kernels.images.THREADS", 512)
    (name, args), (backward, backward_args) = case.calls()
    assert same_bits(run(name, args), ORACLES[name](*args))
    assert launches == ["mixed_sum_kernel"]
    assert_means(run(backward, backward_args), ORACLES[backward](*backward_args), backward_args)
    groups = -(-case.branches // 8)
    assert launches[1:] == ["mixed_sum_backward_kernel"] * groups + ["mixed_sum_means_kernel"]


@pytest.mark.parametrize("case", [case for case in CASES if case is not LARGE], ids=str)
def test_float64_matches_the_oracle(case):
    for name, args in case.calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


def stored(z, rest, dtype, mixed):
    """Return arguments in half precision; if ``mixed`` all but the branches after the first stay."""
    half = tensors(lambda t: t.to(dtype), (z, rest))
    return ([z[0], *half[0][1:]], rest) if mixed else half


@pytest.mark.parametrize("mixed", [False, True], ids=["one storage", "mixed storage"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case is not LARGE], ids=str)
def test_half_precision_rounds_once(case, dtype, mixed):
    (name, args), (backward, backward_args) = case.calls()
    z, (mean, rstd, weights, base) = stored(args[0], args[1:], dtype, mixed)
    args = z, mean, rstd, weights, base
    got, (wanted,) = run(name, args), oracle(name, tensors(torch.Tensor.double, args))
    assert got.dtype == (torch.float32 if mixed else dtype)
    magnitude = torch.zeros_like(wanted) if base is None else base.double().abs()
    for x, m, r, w in zip(z, mean.double(), rstd.double(), weights.double(), strict=True):
        magnitude += (w * r).abs() * (x.double().abs() + m.abs())
    assert_rounded(got, wanted, 3 * len(z), magnitude)
    z, (g, mean, rstd) = stored(backward_args[1], (backward_args[0], *backward_args[2:]), dtype, mixed)
    backward_args = g, z, mean, rstd
    wanted = oracle(backward, tensors(torch.Tensor.double, backward_args))
    assert_means(run(backward, backward_args), [t.float() for t in wanted], backward_args)


@pytest.mark.parametrize("values", [[torch.nan], [torch.inf, -torch.inf], [1e18, -1e-42, -0.0]], ids=str)
@pytest.mark.parametrize("case", [MIXES[1], MIXES[3], *CASES[7:9]], ids=str)
def test_unusual_numbers_have_the_bits_of_the_oracle(case, values):
    (name, args), (backward, backward_args) = case.calls()
    args = spoiled(args, values)
    assert same_bits(run(name, args), ORACLES[name](*args))
    args = spoiled(backward_args, values)
    for got, wanted in zip(run(backward, args), ORACLES[backward](*args), strict=True):
        assert torch.equal(got.isfinite(), wanted.isfinite())


def test_programs_add_many_tiles_and_parts_in_order(monkeypatch, launches):
    """What large images reach: several tiles a program, several blocks of partial results."""
    from dartsfast.kernels import mixed_sum

    monkeypatch.setattr(mixed_sum, "PROGRAMS", 5)
    monkeypatch.setattr(mixed_sum, "PARTS", 2)
    name, args = Mix(2, 9, 11, 70, 3, False, "shifted").calls()[1]
    first = run(name, args)
    assert_means(first, ORACLES[name](*args), args)
    assert same_bits(run(name, args), first)


def test_the_operator_runs_the_kernels_under_autograd(launches):
    (_, (z, mean, rstd, weights, base)), _ = CASES[7].calls(torch.float64)
    leaves = [t.detach().to(DEVICE).requires_grad_() for t in (*z, mean, rstd, weights, base)]
    *z, mean, rstd, weights, base = leaves
    out = dartsfast.ops.mixed_sum(z, mean, rstd, weights, base)
    got = torch.autograd.grad(out.sin().sum(), leaves)
    assert launches == ["mixed_sum_kernel", "mixed_sum_backward_kernel", "mixed_sum_means_kernel"]
    out = base + sum(w * (x - m) * r for x, m, r, w in zip(z, mean, rstd, weights, strict=True))
    wanted = torch.autograd.grad(out.sin().sum(), leaves)
    assert_close([t.cpu() for t in got], [t.cpu() for t in wanted])
