"""The Triton kernels of fd_hvp: the oracle's bits, and a norm within 1 ULP of the truth."""

import pytest
import torch
from interpreted import fused, moved, needs_triton, poisoned, run, storage_error, ulps, watch  # noqa: F401
from op_cases import ORACLES, VECTORS, Sampler, Vectors, assert_close, same_bits
from test_ops import spoiled

pytest.importorskip("triton")
pytestmark = needs_triton
CASES = (*(case for case in VECTORS if case.n < 100_000), Vectors(2048))
HALVES = (torch.bfloat16, torch.float16)


def truth(v):
    """Return the norm in float64 without overflow."""
    largest = v.double().abs().max()
    return (v.double() / largest).square().sum().sqrt() * largest if largest > 0 else largest


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_has_the_bits_of_the_oracle(case, fused):  # noqa: F811
    for name, args in case.calls():
        got, wanted = run(name, args), ORACLES[name](*args)
        assert same_bits(got, wanted) if name != "fd_norm" else ulps(got, truth(args[0])) <= 0.51, name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_matches_the_oracle(case):
    """To 1e-12, which numbers that came as float32 would miss."""
    for name, args in case.calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


@pytest.mark.parametrize("case", CASES[:4], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "mixed"])
def test_half_precision_rounds_what_is_stored_only(case, dtype, mixed):
    for name, args in case.calls():
        half = moved(args, "cpu", dtype)
        args = (args[0], *half[1:2], *args[2:]) if mixed else half
        got, wanted = run(name, args).double(), ORACLES[name](*moved(args, "cpu", torch.float64))
        relative = storage_error(args[0].dtype)
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


def test_a_long_vector_of_long_sums(monkeypatch):
    from dartsfast.kernels import fd_hvp

    monkeypatch.setattr(fd_hvp, "LANES", 16)  # more parts than the second pass has lanes
    v = Sampler().tensor(5_000) * torch.logspace(-20, 15, 5_000)
    assert ulps(run("fd_norm", (v,)), truth(v)) <= 1
    for dtype in HALVES:
        w = Sampler().tensor(5_000).to(dtype)
        assert (
            ulps(run("fd_norm", (w,)), truth(w), dtype)
            <= storage_error(dtype) / torch.finfo(dtype).eps + 0.01
        )


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


@pytest.mark.parametrize("value", [0.0, 1e-43, torch.inf, torch.nan])
def test_a_vector_without_a_direction_moves_nothing(value):
    w0 = torch.tensor([1.0, -0.0, 3.0])
    v = torch.tensor([value, 0, 0])
    norm = run("fd_norm", (v,))
    assert same_bits(run("fd_perturb_", (torch.full_like(w0, torch.nan), w0, v, norm, 0.01, 1.0)), w0)
    quotient = run("fd_quotient", (w0, w0, norm, 0.01))
    assert torch.equal(quotient, torch.zeros(3)) if value < 1 else quotient.isnan().all()


@pytest.mark.parametrize(
    "values", [[torch.nan], [torch.inf, -torch.inf], [1e-42, -1e-42, 3e38, -0.0]], ids=["nan", "inf", "tiny"]
)
def test_unusual_numbers_have_the_bits_of_the_oracle(values, fused):  # noqa: F811
    for case in (Vectors(3), Vectors(1100)):
        for name, args in case.calls():
            args = spoiled(args, values)
            assert same_bits(run(name, args), ORACLES[name](*args)), name


def test_numbers_of_float64_keep_their_bits():
    w, zero, one = torch.zeros(3, dtype=torch.float64), *torch.tensor([0.0, 1.0], dtype=torch.float64)
    ones = torch.ones_like(w)
    for r in (0.1, 1e-300, 1.0, 0.025, 1e300):
        got = run("fd_perturb_", (w, w, ones, one, r, -1.0))
        assert torch.equal(got, torch.full_like(w, -r))
        got = run("fd_virtual_step_", (ones, ones, None, zero, r, 0.0, 1.0))
        assert torch.equal(got, 1 - torch.full_like(w, r))


def test_outputs_never_show_what_was_in_memory(poisoned):  # noqa: F811
    for case in (Vectors(5), Vectors(1100)):
        for name, args in case.calls():
            args = (torch.full_like(args[0], torch.nan), *args[1:]) if name == "fd_perturb_" else args
            assert run(name, args).isfinite().all(), name


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
