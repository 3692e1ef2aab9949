"""The Triton kernels of mixed_sum against the oracle."""

import pytest
import torch
from checks import HALVES, MARKS, assert_rounded, assert_sum, oracle, run, tensors

from tests.comparisons import assert_close, same_bits
from tests.op_calls import ORACLES
from tests.op_cases import MIXES, SMALL, Mix

KERNELS = ("mixed_sum",)
# More channels than a tile holds, more branches than a group, and a dense layout of either unit; beside
# them what tests/test_ops.py has in other tiles.
BLOCKS = (Mix(1, 3, 5, 70, 2, True), Mix(2, 3, 3, 8, 17, False), Mix(1, 2, 3, 1, 2, True))
CASES = (*MIXES[:5], MIXES[6], *(case for case in SMALL if isinstance(case, Mix)), *BLOCKS)
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
def test_float32_has_the_bits_and_the_sums_of_the_oracle(case, launches):
    (name, args), (backward, backward_args) = case.calls()
    assert same_bits(run(name, args), ORACLES[name](*args))
    assert launches == ["mixed_sum_kernel"]
    assert_means(run(backward, backward_args), ORACLES[backward](*backward_args), backward_args)
    groups = -(-case.branches // 8)
    assert launches[1:] == ["mixed_sum_backward_kernel"] * groups + ["mixed_sum_means_kernel"]


@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_float64_matches_the_oracle(case):
    for name, args in case.calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


def stored(z, rest, dtype, mixed):
    """Return arguments in half precision; if ``mixed`` all but the branches after the first stay."""
    half = tensors(lambda t: t.to(dtype), (z, rest))
    return ([z[0], *half[0][1:]], rest) if mixed else half


@pytest.mark.parametrize("mixed", [False, True], ids=["one storage", "mixed storage"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
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


def test_pixels_beyond_the_last_add_nothing_to_an_infinite_sum():
    name, (g, z, mean, rstd) = Mix(1, 3, 3, 4, 1, False).calls()[1]
    mean = mean.clone()
    mean[0, 0] = -torch.inf
    _, means = run(name, (g.abs(), z, mean, rstd))
    assert means[1, 0] == torch.inf and means[1, 1:].isfinite().all()


def test_programs_add_many_tiles_and_parts_in_order(monkeypatch, launches):
    """What large images reach: several tiles a program, several blocks of partial results."""
    from dartsfast.kernels import mixed_sum

    monkeypatch.setattr(mixed_sum, "PROGRAMS", 5)
    monkeypatch.setattr(mixed_sum, "PARTS", 2)
    name, args = Mix(2, 9, 11, 70, 3, False, "shifted").calls()[1]
    first = run(name, args)
    assert_means(first, ORACLES[name](*args), args)
    assert same_bits(run(name, args), first)
