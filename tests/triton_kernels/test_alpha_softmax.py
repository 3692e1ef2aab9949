"""The Triton kernels of alpha_softmax against the oracle."""

import math

import pytest
import torch
from checks import HALVES, MARKS, assert_rounded, oracle, run, tensors

from tests.comparisons import same_bits
from tests.op_calls import ORACLES
from tests.op_cases import ALPHAS, SMALL, Alphas

KERNELS = ("alpha_softmax",)
CASES = (*ALPHAS, *(case for case in SMALL if isinstance(case, Alphas)), Alphas(((33, 2), (2, 70))))
pytestmark = MARKS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_has_the_bits_of_the_oracle_in_one_launch(case, launches):
    for name, args in case.calls():
        assert same_bits(run(name, args), ORACLES[name](*args))
        assert launches == [f"{name}_kernel"]
        launches.clear()


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
