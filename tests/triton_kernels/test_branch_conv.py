"""The Triton kernels of branch_conv: the oracle's numbers, whole outputs, and which kernels ran.

They run on a GPU, or with TRITON_INTERPRET=1 on the CPU. The interpreter multiplies and adds in tl.fma
with two roundings, and a tl.dot in NumPy's order: there float32 agrees to rounding, not to the bit.
"""

import importlib

import pytest
import torch
from op_sampler import Sampler
from torch.utils._pytree import tree_leaves, tree_map

from dartsfast.backends.triton import INTERPRETED, missing
from dartsfast.ops.contract import CONTRACTS, accumulated
from tests.comparisons import assert_close
from tests.op_calls import ORACLES, call, moved
from tests.op_cases import CONVS, EDGE, SMALL, Conv
from tests.test_ops import STOCK as STOCK_FORWARD
from tests.test_ops import STOCK_BACKWARD

reason = missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))
DEVICE = "cpu" if INTERPRETED else "cuda"
STOCK = {**STOCK_FORWARD, **STOCK_BACKWARD}
# The interpreter cuts bfloat16 off where a device rounds it.
ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0 ** -(7 if INTERPRETED else 8),
    torch.float16: 2.0**-11,
}
# Blocks as they are launched; tests/test_ops.py has all cases, in larger ones.
BLOCKS = (
    Conv(1, 2, 3, 144, 70, 1, ((3, 1),), True, True),  # blocks of 64 and of 32 channels, the last not full
    Conv(2, 3, 2, 64, 64, 2, ((3, 2), (5, 1)), False, True),
    Conv(2, 9, 8, 24, 24, 1, (), True, False, "slice"),  # a second tile of pixels
    Conv(1, 3, 2, 33, 24, 1, ((1, 1),), False, False),
)
CASES = (*(case for case in SMALL if isinstance(case, Conv)), CONVS[1], *BLOCKS)
HALVES = (SMALL[0], SMALL[2], *CONVS[1:5], BLOCKS[1])


@pytest.fixture(autouse=True)
def scratch_is_nan():
    """What is allocated holds NaN, until it is written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def modules():
    names = "branch_conv", "branch_conv_backward", "reduce"
    return [importlib.import_module(f"dartsfast.kernels.{name}") for name in names]


@pytest.fixture
def launched(modules, monkeypatch):
    """The names of the kernels that were launched."""
    names = []

    def record(kernel, *args, **meta):
        names.append(kernel.__name__)
        return launch(kernel, *args, **meta)

    launch = modules[0].launch
    for module in modules:
        monkeypatch.setattr(module, "launch", record)
    return names


def run(name, args):
    """Return what the kernels make of outputs full of NaN."""
    from dartsfast.kernels import OPERATORS

    args = moved(args, DEVICE)
    out = CONTRACTS[name](*args)
    for t in tree_leaves(out):
        t.fill_(torch.nan)
    OPERATORS[name](out, *args)
    return tree_map(lambda t: t.cpu(), out)


def calls(case, dtype):
    """Return the calls of a case; of a large one not those that ask for a part of what others do."""
    return case.calls(dtype) if case in SMALL else case.calls(dtype)[:3]


def wide(args):
    return tree_map(lambda t: t.double() if isinstance(t, torch.Tensor) else t, args)


def oracle(name, args):
    """Return what the oracle makes of the arguments; it has no dtype."""
    return ORACLES[name](*args[:7]) if name == "branch_conv" else ORACLES[name](*args)


def assert_near(got, truth, allowed):
    """Check every tensor against the float64 ``truth``: no element farther off than what is allowed."""
    got, truth = tree_leaves(got), tree_leaves(truth)
    assert len(got) == len(truth)
    for i, (a, b) in enumerate(zip(got, truth, strict=True)):
        assert a.shape == b.shape
        if a.numel():
            assert ((a.double() - b).abs() <= allowed(i, a, b)).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_matches_stock_pytorch(case):
    for name, args in calls(case, torch.float64):
        assert_close(run(name, args), STOCK[name](*args))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_as_good_as_the_oracle(case):
    for name, args in calls(case, torch.float32):
        truth, ordered = (tree_leaves(oracle(name, given)) for given in (wide(args), args))

        def allowed(i, a, b, truth=truth, ordered=ordered):
            return 4 * (ordered[i] - truth[i]).abs().max() + 8 * ROUNDOFF[torch.float32] * b.abs().max()

        assert_near(run(name, args), truth, allowed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", HALVES, ids=str)
def test_half_precision_is_rounded_once(case, dtype):
    """Images are stored in half precision, and all weights of some calls; arithmetic is float32."""

    def image(t):
        return t.to(dtype) if isinstance(t, torch.Tensor) and t.dim() == 4 and 1 not in t.shape[1:] else t

    def allowed(i, a, b):
        return ROUNDOFF[a.dtype] * b.abs() + 1e-5 * b.abs().max()

    for number, (name, args) in enumerate(case.calls()):
        args = tree_map(image, args)
        if number == 1:
            args = tree_map(lambda t: t.to(dtype) if isinstance(t, torch.Tensor) else t, args)
        got, truth = run(name, args), oracle(name, wide(args))
        if name == "branch_conv":
            z = got[0].double()
            assert z.dtype == torch.float64 and got[0].dtype == args[0].dtype
            truth = truth[0], torch.stack([z.mean((1, 2, 3)), z.var((1, 2, 3), correction=0)], 1)
        assert all(t.dtype in (dtype, torch.float32) for t in tree_leaves(got))
        assert_near(got, truth, allowed)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
def test_z_may_be_stored_narrower_than_x(stored):
    (name, args), *_ = SMALL[0].calls()
    z, stats = run(name, (*args, stored))
    assert z.dtype == stored and stats.dtype == accumulated(stored) == torch.float32
    wide_z = oracle(name, wide(args))[0]
    assert ((z.double() - wide_z).abs() <= ROUNDOFF[stored] * wide_z.abs() + 1e-6).all()
    assert_near(stats[:, 0], z.double().mean((1, 2, 3)), lambda i, a, b: 1e-6 * b.abs().max())


def test_any_strides_of_gradients():
    """Expanded, permuted, and another layout for every branch."""
    _, _, (name, (g, z, coef, *rest)), *_ = SMALL[0].calls(torch.float64)
    shape = g[0].shape
    expanded = Sampler(torch.float64).tensor(1).expand(shape)
    permuted = g[1].permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    for gradients in ([expanded, expanded], [expanded, g[1]], [g[0], permuted]):
        args = (gradients, [z[0].transpose(0, 1).contiguous().transpose(0, 1), z[1]], coef, *rest)
        assert_close(run(name, args), STOCK[name](*args))


def test_weight_gradients_are_split(modules, monkeypatch):
    monkeypatch.setattr(modules[1], "SPLITS", 2)
    case = Conv(
        2, 13, 13, 3, 4, 1, ((3, 2),), False, True
    )  # 338 pixels: tiles 0-2 and 3-5, the last not full
    _, (name, args), *_ = case.calls(torch.float64)
    assert_close(run(name, args), STOCK[name](*args))


@pytest.mark.parametrize("case", [SMALL[0], SMALL[2]], ids=str)
def test_only_what_is_asked_for_is_launched(case, launched):
    """And the dispatcher leads here."""
    dt = ["pointwise_adjoint_kernel"] if case.taps else []
    by_input = ["input_gradient_kernel", "sum_kernel"]
    by_weights = ["pointwise_gradient_kernel", "depthwise_gradient_kernel", "weight_sums_kernel"]
    by_weights = by_weights if case.taps else by_weights[::2]
    expected = (
        ["branch_conv_kernel", "moments_kernel"],
        dt + by_input + by_weights,
        dt + by_input,
        dt + by_weights,
        [],
    )
    for (name, args), wanted in zip(case.calls(), expected, strict=True):
        launched.clear()
        call(name, moved(args, DEVICE))
        assert launched == wanted


def test_the_cases_reach_every_choice_of_blocks(modules):
    chosen = [modules[0].tile(case.Ci, case.Co, bool(case.taps)) for case in CASES]
    assert {shape["BO"] for shape in chosen} == {16, 32, 64}
    assert {shape["BC"] for shape in chosen} == {16, 32}
    assert {shape["num_warps"] for shape in chosen} == {4, 8}
    assert any(case.Ci > 32 for case in CASES) and any(case.Co > 64 for case in CASES)
    assert len({(bool(case.taps), case.stride) for case in CASES}) == 4
    assert EDGE in [case.taps for case in CASES]
