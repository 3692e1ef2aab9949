"""The Triton kernels of pool3x3 against the oracle."""

import pytest
import torch
from checks import HALVES, MARKS, assert_rounded, assert_sum, oracle, run, tensors

from tests.comparisons import assert_close, same_bits
from tests.op_calls import ORACLES
from tests.op_cases import POOLS, SMALL, Pool

KERNELS = ("pool3x3", "reduce")
# More channels than a tile holds, and windows that hang over every side at once; beside them what
# tests/test_ops.py has in other tiles.
BLOCKS = (Pool(1, 3, 2, 70, 1), Pool(2, 2, 2, 8, 2), Pool(1, 6, 5, 1, 2, "shifted"))
CASES = (*POOLS[:4], POOLS[6], *(case for case in SMALL if isinstance(case, Pool)), *BLOCKS)
FORWARD = ["pool3x3_kernel", "moments_kernel"]
BACKWARD = ["pool3x3_place_kernel", "pool3x3_backward_kernel"]
pytestmark = MARKS


def assert_moments(stats, z):
    """Check mean and variance [2, 2, C] of z [2, N, Ho, Wo, C]."""
    z, pixels = z.double(), z[0, ..., 0].numel()
    mean, variance = z.mean((1, 2, 3)), z.var((1, 2, 3), correction=0)
    assert_sum(stats[:, 0], mean.float(), z.abs().mean((1, 2, 3)), pixels)
    assert_sum(stats[:, 1], variance.float(), variance + mean.square(), pixels)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_has_the_bits_of_the_oracle(case, launches):
    (name, args), *backward = case.calls()
    z, stats = run(name, args)
    assert launches == FORWARD
    assert same_bits(z, ORACLES[name](*args)[0])
    assert_moments(stats, z)
    for name, args in backward:
        launches.clear()
        assert same_bits(run(name, args), ORACLES[name](*args))
        assert launches == BACKWARD


@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_float64_matches_the_oracle(case):
    for name, args in case.calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


@pytest.mark.parametrize(
    ("dtype", "mixed"), [*((dtype, False) for dtype in HALVES), (torch.bfloat16, True)], ids=str
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_rounds_once(case, dtype, mixed):
    (name, args), *backward = case.calls()
    args = tensors(lambda t: t.to(dtype), args)
    z, stats = run(name, args)
    wanted = ORACLES[name](*tensors(torch.Tensor.double, args))[0]
    assert z.dtype == dtype and torch.equal(z[0].double(), wanted[0])
    assert_rounded(z[1], wanted[1], 10, args[0].double().abs().max())
    assert_moments(stats, z)
    for name, args in backward:
        g, z, coef, x, stride, base = tensors(lambda t: t.to(dtype), args)
        if mixed:  # as in a search: the gradient, what it adds to and the coefficients stay
            g, coef, base = args[0], args[2], args[5]
        args = g, z, coef, x, stride, base
        got, (wanted,) = run(name, args), oracle(name, tensors(torch.Tensor.double, args))
        assert got.dtype == g[0].dtype
        assert_rounded(got, wanted, 16, magnitude(*tensors(torch.Tensor.double, args)))


def magnitude(g, z, coef, x, stride, base):
    """Return the sum of the absolute values that make up dx, in float64."""
    parts = [d.abs() for d in g]
    if coef is not None:
        for half, (m, mu, r, k) in enumerate(coef.abs().unbind(0)):
            parts[half] = ((parts[half] + m) + (z[half].abs() + mu) * r) * k
    return ORACLES["pool3x3_backward"](parts, [], None, x, stride, None if base is None else base.abs())
