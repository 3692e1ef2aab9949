"""The Triton kernels of norm_stats: the oracle's bits, in one launch."""

import pytest
import torch
from comparisons import assert_close, same_bits
from interpreted import needs_triton, run, watch
from op_calls import ORACLES
from op_cases import NORMS, Norms

pytest.importorskip("triton")
pytestmark = needs_triton
CASES = (*NORMS, Norms(2, 1100), Norms(2, 513, None))  # more channels than a program takes at once


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_has_the_bits_of_the_oracle_in_one_launch(case, exact, poisoned, monkeypatch):
    from dartsfast.kernels import norm_stats

    launches = watch(monkeypatch, norm_stats)
    for name, args in case.calls():
        assert same_bits(run(name, args), ORACLES[name](*args)), name
        assert [launch[0] for launch in launches] == [f"{name.rstrip('_')}_kernel"]
        launches.clear()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_matches_the_oracle(case):
    for name, args in case.calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


def test_infinite_gradients_do_not_pass_a_norm_that_is_not_the_batchs():
    infinite, norm = torch.full((2, 3), torch.inf), torch.ones(2, 2, 3)
    coef = run("norm_stats_backward", (infinite, infinite, norm, None, torch.tensor([0.0, 1.0])))
    assert torch.equal(coef[0], torch.tensor([0.0, 1, 0, 1])[:, None].expand(4, 3))
    assert coef[1, 0].isinf().all()
