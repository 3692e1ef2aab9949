"""The Triton kernels of alpha_softmax against the oracle."""

import math

import pytest
import torch
from checks import DEVICE, HALVES, MARKS, assert_rounded, oracle, run, tensors

import dartsfast.ops
from tests.op_cases import ALPHAS, ORACLES, SMALL, Alphas, assert_close, same_bits

KERNELS = ("alpha_softmax",)
CASES = (*ALPHAS, *(case for case in SMALL if isinstance(case, Alphas)), Alphas(((33, 2), (2, 70))))
pytestmark = MARKS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_has_the_bits_of_the_oracle_in_one_launch(case, launches):
    for name, args in case.calls():
        assert same_bits(run(name, args), ORACLES[name](*args))
        assert launches == [f"{name}_kernel"]
        launches.clear()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_matches_the_oracle(case):
    for name, args in case.calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_rounds_once(case, dtype):
    for name, args in case.calls():
        args = tensors(lambda t: t.to(dtype), args)
        wide = tensors(torch.Tensor.double, args)
        # exp: the polynomial is within 2^-22, and 0 below -87; then K additions and a division. The
        # backward: K fused multiply-adds, a difference and a product, of p * (|d| + sum(p * |d|)).
        for i, (got, wanted) in enumerate(zip(run(name, args), oracle(name, wide), strict=True)):
            assert got.dtype == dtype
            magnitude = None
            if name.endswith("backward"):
                p, d = wide[0][i], wide[1][i]
                magnitude = p * (d.abs() + (p * d).abs().sum(1, keepdim=True))
            assert_rounded(got, wanted, 12 + got.shape[1], magnitude, floor=math.exp(-87))


@pytest.mark.parametrize(
    "values", [[torch.nan], [torch.inf, -torch.inf], [-torch.inf], [1e-42, -1e-42, 3e38, -0.0]], ids=str
)
def test_unusual_numbers_have_the_bits_of_the_oracle(values):
    (name, (alphas,)), (backward, (p, d)) = Alphas(((9, 5), (5, 4))).calls()
    for i, value in enumerate(values):
        alphas[0][2 * i, i] = value
        d[1][i, 1] = value
    assert same_bits(run(name, (alphas,)), ORACLES[name](alphas))
    assert same_bits(run(backward, (p, d)), ORACLES[backward](p, d))


def test_the_operator_runs_the_kernels_under_autograd(launches):
    alpha = torch.randn(3, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    (p,) = dartsfast.ops.alpha_softmax([alpha])
    p[:, 1].sum().backward()
    assert launches == ["alpha_softmax_kernel", "alpha_softmax_backward_kernel"]
    (wanted,) = torch.autograd.grad(alpha.softmax(1)[:, 1].sum(), alpha)
    assert_close(alpha.grad.cpu(), wanted.cpu())
