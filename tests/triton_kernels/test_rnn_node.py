"""The Triton kernels of rnn_node: the oracle's bits where no sum over the batch takes part."""

import pytest
import torch
from comparisons import assert_close, same_bits
from interpreted import DEVICE, moved, needs_triton, run, ulps, watch
from op_calls import ORACLES
from op_cases import NODES, SMALL, Node
from op_sampler import Sampler

from dartsfast.oracle import activations as oracle

triton = pytest.importorskip("triton")
tl = triton.language
activations = pytest.importorskip("dartsfast.kernels.activations")
sigmoid, tanh = activations.sigmoid, activations.tanh
pytestmark = [needs_triton, pytest.mark.usefixtures("poisoned")]
FEW = (*(case for case in SMALL if isinstance(case, Node)), NODES[0], NODES[1])
ALL = (*FEW, *NODES[2:], Node(1, 260, 3))
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def wide(request, monkeypatch):
    """Give programs more channels where there are many: the interpreter's time goes by programs."""
    from dartsfast.kernels import rnn_node

    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    if case and case.H > 8:
        monkeypatch.setattr(rnn_node, "CHANNELS", 64)


@triton.jit
def activate_kernel(x, s, t, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, i < n, 0.0)
    tl.store(s + i, sigmoid(value), i < n)
    tl.store(t + i, tanh(value), i < n)


def activated(x):
    x = x.to(DEVICE)
    s, t = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    activate_kernel[(triton.cdiv(len(x), 8192),)](x, s, t, len(x), BLOCK=8192, enable_fp_fusion=False)
    return s.cpu(), t.cpu()


def near(got, wanted, tolerance=4e-6):
    """Check against the largest element of what is wanted."""
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.numel():
            assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max()


def arguments():
    sampler = Sampler()
    spread = (sampler.tensor(20_000) * scale for scale in (1e-3, 0.5, 8))
    special = torch.tensor([0.0, -0.0, 0.625, 1e-42, -1e-42, 87.25, -87.25, 3e38, torch.inf, -torch.inf])
    return torch.cat([torch.linspace(-87, 87, 50_001), *spread, special])


def test_activations_have_the_bits_of_the_oracle(exact):
    x = torch.cat([arguments(), torch.tensor([torch.nan])])
    s, t = activated(x)
    assert same_bits([s, t], [oracle.sigmoid(x), oracle.tanh(x)])


def test_activations_are_within_2_ulp():
    """In the interpreter too, whose fma rounds twice."""
    x = arguments()
    s, t = activated(x)
    alive = x > -87.25  # where exp(-87.25) and less is 0, by the contract
    assert ulps(s[alive], x[alive].double().sigmoid()) <= 2
    assert torch.equal(s[~alive], torch.zeros(s[~alive].shape))
    normal = (x == 0) | (x.abs() >= torch.finfo(torch.float32).tiny)
    assert ulps(t[normal], x[normal].double().tanh()) <= 2


def test_activations_of_float64():
    x = arguments().double()
    s, t = activated(x)
    assert torch.equal(t.signbit(), x.signbit())
    torch.testing.assert_close(s, x.sigmoid(), rtol=1e-15, atol=1e-300)
    torch.testing.assert_close(t, x.tanh(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_float32_has_the_bits_of_the_oracle_up_to_sums_over_the_batch(case, exact):
    (_, forward), (_, given), (_, own), (_, other) = case.calls()
    assert same_bits(run("rnn_node", given), ORACLES["rnn_node"](*given))
    out, stats = run("rnn_node", forward)
    near([stats], [ORACLES["rnn_node"](*forward)[1]])
    assert same_bits(out, ORACLES["rnn_node"](*forward[:3], stats, forward[4])[0])
    got, wanted = run("rnn_node_backward", other), ORACLES["rnn_node_backward"](*other)
    assert same_bits(got[:2], wanted[:2])
    near(got[2:], wanted[2:])
    near(run("rnn_node_backward", own), ORACLES["rnn_node_backward"](*own))


@pytest.mark.parametrize("case", [*FEW, Node(1, 260, 3)], ids=str)
def test_float64_matches_the_oracle(case):
    for name, args in case.calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "mixed"])
def test_half_precision_rounds_what_is_stored_only(case, dtype, mixed, exact):
    for name, args in case.calls():
        # Mixed: the forward's states and the backward's output alone.
        args = (args[0], args[1].to(dtype), *args[2:]) if mixed else moved(args, "cpu", dtype)
        for got, wanted in zip(
            run(name, args), ORACLES[name](*moved(args, "cpu", torch.float64)), strict=True
        ):
            if got.numel():
                error = (got.double() - wanted).abs()
                assert (
                    error <= torch.finfo(got.dtype).eps / 2 * wanted.abs() + 1e-5 * wanted.abs().max() + 6e-8
                ).all(), name


@pytest.mark.parametrize("rows", [4, 32, 256])
def test_every_number_of_row_tiles(rows, monkeypatch):
    from dartsfast.kernels import rnn_node

    monkeypatch.setattr(rnn_node, "ROWS", rows)
    for name, args in Node(2, 35, 3).calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))
    for name, args in [*Node(2, 35, 3).calls()[:1], *Node(2, 35, 3).calls(torch.bfloat16)[:1]]:
        near(run(name, args)[1:], ORACLES[name](*moved(args, "cpu", torch.float32))[1:])


def test_large_numbers_that_hardly_vary():
    """The square of their mean overflows; nothing that is returned needs it."""
    states = torch.full([1, 5, 3], 1e25)
    weights = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    out, stats = run("rnn_node", (torch.full([1, 5, 6], -100.0), states, weights, None, 1e-5))
    assert torch.equal(out, torch.zeros(5, 3)) and torch.equal(stats[0], states[0, 0])


def test_launches(monkeypatch):
    from dartsfast.kernels import reduce, rnn_node

    launches = watch(monkeypatch, rnn_node, reduce)
    for name, args in Node(3, 5, 7, "transposed").calls():
        run(name, args)
    forward, backward = ("rnn_node_kernel", (2,)), ("rnn_node_backward_kernel", (2, 3))
    total = "sum_kernel", (1,)
    assert [launch[:2] for launch in launches] == [forward, forward, backward, total, backward, total]
    tiles = [rnn_node.tile(B) for B in (1, 33, 256, 10_000)]
    assert [(tile["BB"], tile["num_warps"]) for tile in tiles] == [(32, 1), (64, 2), (256, 8), (256, 8)]
    assert [rnn_node.common_divisor(*sizes) for sizes in ((300, 600), (16, 0), (3, 8), (2, 2))] == [
        4,
        8,
        1,
        2,
    ]
