"""The Triton kernels of fd_hvp: the oracle's bits, and a norm within 1 ULP of the truth."""

import pytest
import torch
from comparisons import assert_close
from interpreted import moved, needs_triton, run, ulps, watch
from op_calls import ORACLES
from op_cases import VECTORS, Vectors
from op_sampler import Sampler

pytest.importorskip("triton")
pytestmark = [needs_triton, pytest.mark.usefixtures("poisoned")]
CASES = (*(case for case in VECTORS if case.n < 100_000), Vectors(2048))
HALVES = (torch.bfloat16, torch.float16)


def truth(v):
    """Return the norm in float64 without overflow."""
    largest = v.double().abs().max()
    return (v.double() / largest).square().sum().sqrt() * largest if largest > 0 else largest


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_norm_is_rounded_once(case, exact):
    _, (v,) = case.calls()[0]
    assert ulps(run("fd_norm", (v,)), truth(v)) <= 0.51


@pytest.mark.parametrize("case", CASES[:4], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "mixed"])
def test_half_precision_rounds_what_is_stored_only(case, dtype, mixed, exact):
    for name, args in case.calls():
        half = moved(args, "cpu", dtype)
        args = (args[0], *half[1:2], *args[2:]) if mixed else half
        got, wanted = run(name, args).double(), ORACLES[name](*moved(args, "cpu", torch.float64))
        relative = torch.finfo(args[0].dtype).eps / 2
        assert ((got - wanted).abs() <= relative * wanted.abs() + 1e-6 * wanted.abs().max() + 6e-8).all(), (
            name
        )


EXTREMES = {
    "one": [1.0],
    "small": [1e-30] * 3000,
    "large": [1e30] * 3000,
    "both": [1e30, 1e-30, -3e29] * 999,
    "apart": [1.0] + [2.0**-12] * 9000,
    "parts apart": [1e-30] * 9000 + [1e-25] * 9000 + [3e-31] * 100,
    "largest": [-3.4e38],
    "subnormal": [1e-42, -3e-45, 1e-43],
    "alike": [0.1] * 9001,
    "zeros": [0.0, -0.0] * 50,
}


@pytest.mark.parametrize("values", EXTREMES.values(), ids=EXTREMES)
def test_the_norm_neither_overflows_nor_vanishes(values):
    """In the interpreter too, whose fma rounds twice."""
    v = torch.tensor(values)
    assert ulps(run("fd_norm", (v,)), truth(v)) <= 1
    assert_close(run("fd_norm", (v.double(),)), truth(v))


def test_a_long_vector_of_long_sums(monkeypatch, exact):
    from dartsfast.kernels import fd_hvp

    monkeypatch.setattr(fd_hvp, "LANES", 16)  # more parts than the second pass has lanes
    v = Sampler().tensor(5_000) * torch.logspace(-20, 15, 5_000)
    assert ulps(run("fd_norm", (v,)), truth(v)) <= 1
    for dtype in HALVES:
        w = Sampler().tensor(5_000).to(dtype)
        assert ulps(run("fd_norm", (w,)), truth(w), dtype) <= 0.51


@pytest.mark.parametrize("place", [0, 4097, 9000])
def test_a_norm_that_is_not_finite(place):
    for values, wanted in (
        ([torch.inf], torch.inf),
        ([-torch.inf, 3e38], torch.inf),
        ([torch.inf, torch.nan], None),
    ):
        v = torch.ones(9002)
        v[place : place + len(values)] = torch.tensor(values)
        got = run("fd_norm", (v,))
        assert got.isnan() if wanted is None else got == wanted


def test_numbers_of_float64_keep_their_bits():
    w, zero, one = torch.zeros(3, dtype=torch.float64), *torch.tensor([0.0, 1.0], dtype=torch.float64)
    ones = torch.ones_like(w)
    for r in (0.1, 1e-300, 1.0, 0.025, 1e300):
        got = run("fd_perturb_", (w, w, ones, one, r, -1.0))
        assert torch.equal(got, torch.full_like(w, -r))
        got = run("fd_virtual_step_", (ones, ones, None, zero, r, 0.0, 1.0))
        assert torch.equal(got, 1 - torch.full_like(w, r))


def test_launches(monkeypatch):
    """A whole program, without masks, and one in part."""
    from dartsfast.kernels import fd_hvp

    launches = watch(monkeypatch, fd_hvp)
    for name, args in Vectors(1025).calls():
        run(name, args)
    names = ["norm", "norm_join", "perturb", "perturb", "virtual_step", "virtual_step", "quotient"]
    assert [launch[0] for launch in launches] == [f"fd_{name}_kernel" for name in names]
    assert [launch[1] for launch in launches] == [(1,), (1,), *[(2,)] * 5]
    lanes = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        run("fd_norm", (torch.ones(9000, dtype=dtype),))
        lanes.append((launches[-2][1], launches[-2][2]["LANES"]))
    assert lanes == [((3,), 256), ((2,), 512), ((1,), 1024)]
