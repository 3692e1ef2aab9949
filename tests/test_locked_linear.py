"""The layer behind locked dropout: the oracle's bits, stock numbers, nothing dropped read, good manners."""

import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_close, same_bits
from op_backends import instruction_set as instruction_set  # a fixture
from op_backends import needs_kernels
from op_calls import call, oracle
from op_cases import LOCKED, Locked
from test_native import without_extension

from dartsfast.errors import InputError
from dartsfast.fused.loss import locked_cross_entropy
from dartsfast.ops import locked_linear_, locked_linear_input_gradient_, locked_linear_weight_gradient_

WITHOUT = """
import torch
import dartsfast.ops
from comparisons import assert_close
from op_calls import call
from op_cases import LOCKED
from test_locked_linear import stock
from dartsfast.backends import native
assert native.load() is not None
for case in LOCKED:
    for name, args in case.calls(torch.float64):
        args = [a.nan_to_num(0) for a in args]
        assert_close(call(name, args), stock(name, args))
"""


def stock(name, args):
    """Return what becomes of the first argument, by plain products in which what is dropped is 0."""
    out, *read = (t.nan_to_num(0) for t in args)
    if name == "locked_linear_":
        x, mask, weight = read
        return torch.einsum("tnh,nh,hv->ntv", x, mask, weight)
    if name == "locked_linear_input_gradient_":
        g, mask, weight = read
        return torch.einsum("ntv,nh,hv->tnh", g, mask, weight)
    g, x, mask = read
    return out + torch.einsum("ntv,tnh,nh->hv", g, x, mask)


@needs_kernels
@pytest.mark.parametrize("case", LOCKED, ids=str)
def test_float32_has_the_bits_of_the_oracle(case, instruction_set):
    for name, args in case.calls():
        assert same_bits(call(name, args), oracle(name, args))


@needs_kernels
@pytest.mark.parametrize("case", LOCKED, ids=str)
def test_float64_matches_stock_pytorch(case, instruction_set):
    for name, args in case.calls(torch.float64):
        assert_close(call(name, args), stock(name, args))


@needs_kernels
def test_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append([call(name, args) for name, args in Locked(38, 7, 60, 1500).calls()])
    torch.set_num_threads(before)
    assert all(same_bits(result, results[0]) for result in results)


@needs_kernels
def test_everything_may_be_dropped():
    x, mask, weight, g = torch.ones(3, 2, 5), torch.zeros(2, 5), torch.ones(5, 7), torch.ones(2, 3, 7)
    out, d_x, d_weight = torch.full_like(g, torch.nan), torch.full_like(x, torch.nan), torch.ones(5, 7)
    locked_linear_(out, x, mask, weight)
    locked_linear_input_gradient_(d_x, g, mask, weight)
    locked_linear_weight_gradient_(d_weight, g, x, mask)
    assert not out.any() and not d_x.any() and torch.equal(d_weight, torch.ones(5, 7))


@needs_kernels
@pytest.mark.parametrize(("name", "args"), Locked(2, 3, 5, 4, keep=0.6).calls())
def test_opcheck(name, args):
    args = tuple(t.nan_to_num(0) for t in args)
    torch.library.opcheck(getattr(torch.ops.dartsfast, name).default, args)


@needs_kernels
def test_compiled_equals_eager():
    def layer(x, mask, weight):
        out, d_x, d_weight = x.new_empty(3, 2, 4), torch.empty_like(x), torch.ones_like(weight)
        locked_linear_(out, x, mask, weight)
        locked_linear_input_gradient_(d_x, out, mask, weight)
        locked_linear_weight_gradient_(d_weight, out, x, mask)
        return out, d_x, d_weight

    inputs = Locked(2, 3, 5, 4, keep=0.6).calls()[0][1][1:]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(*inputs), layer(*inputs))


def test_without_the_extension_stock_functions_do_the_same(pytestconfig):
    without_extension("-c", WITHOUT, PYTHONPATH=f"{pytestconfig.rootpath}:{pytestconfig.rootpath}/tests")


def test_tensors_that_autograd_follows_are_refused():
    for name, args in Locked(2, 3, 5, 4).calls():
        for place in range(4):
            followed = [*args[:place], args[place].clone().requires_grad_(), *args[place + 1 :]]
            with pytest.raises(RuntimeError, match=f"dartsfast::{name} has no derivative"):
                call(name, followed)


@needs_kernels
def test_bad_arguments_have_clear_messages():
    x, mask, weight, g = torch.ones(3, 2, 5), torch.ones(2, 5), torch.ones(5, 7), torch.ones(2, 3, 7)
    out, d_x, d_weight = torch.ones_like(g), torch.ones_like(x), torch.ones_like(weight)
    forward, by_x, by_weight = locked_linear_, locked_linear_input_gradient_, locked_linear_weight_gradient_
    memory = torch.ones(100)
    refused = [
        (forward, (out, x[:2], mask, weight), r"x must be \[3, 2, 5\], got \[2, 2, 5\]"),
        (forward, (out, x, mask[:, :4], weight), r"x must be \[3, 2, 4\], got \[3, 2, 5\]"),
        (forward, (out, x, mask[:, :0], weight), "mask must not be empty"),
        (forward, (out, x, mask[:1], weight), r"mask must be \[2, -1\], got \[1, 5\]"),
        (forward, (out, x, mask, weight[:, :6]), r"weight must be \[5, 7\], got \[5, 6\]"),
        (forward, (out, x, mask, torch.ones(7, 5).T), "weight must be contiguous"),
        (forward, (out.transpose(0, 1), x, mask, weight), "out must be contiguous"),
        (forward, (out.half(), x, mask, weight), "out must be float32 or float64"),
        (forward, (out, x.double(), mask, weight), "x must have the dtype"),
        (forward, (memory[:42].view(2, 3, 7), memory[40:70].view(3, 2, 5), mask, weight), "out must not"),
        (by_x, (d_x, g[:1], mask, weight), r"mask must be \[1, -1\], got \[2, 5\]"),
        (by_x, (torch.ones(3, 1, 5).expand(3, 2, 5), g, mask, weight), "d_x must not overlap with itself"),
        (by_x, (memory.as_strided((3, 2, 5), (9, 5, 1)), g, mask, weight), "d_x must not overlap with its"),
        (by_x, (memory[30:60].view(3, 2, 5), memory[:42].view(2, 3, 7), mask, weight), "d_x must not over"),
        (by_weight, (d_weight[:4], g, x, mask), r"d_weight must be \[5, 7\], got \[4, 7\]"),
        (by_weight, (memory[:35].view(5, 7), memory[7:49].view(2, 3, 7), x, mask), "d_weight must not over"),
    ]  # fmt: skip
    for function, args, message in refused:
        with pytest.raises((RuntimeError, InputError), match=message):
            function(*args)


def decoder(needed=(True, True, True)):
    """Return x [T, N, H], mask, weight, bias, labels of a loss, and its value by stock functions."""
    name, (_, x, mask, _) = Locked(4, 5, 7, 11, keep=0.4, layout="slice").calls(torch.float64)[0]
    generator = torch.Generator().manual_seed(1)
    weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in [(11, 7), (11,)]
    )
    labels = torch.randint(11, (4, 5), generator=generator)
    x, weight, bias = (
        t.nan_to_num(0).requires_grad_(need) for t, need in zip((x, weight, bias), needed, strict=True)
    )
    truth = F.cross_entropy(F.linear(x * mask, weight, bias).flatten(0, 1), labels.flatten())
    return x, mask, weight, bias, labels, truth


@needs_kernels
@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, False)])
@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_the_loss_is_that_of_stock_modules(chunk, needed):
    *args, truth = decoder(needed)
    loss = locked_cross_entropy(*args, chunk)
    inputs = [t for t in args[:4] if t.requires_grad]
    assert_close(loss.detach(), truth.detach())
    assert_close(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * truth, inputs))


@needs_kernels
def test_a_second_derivative_of_the_loss_raises():
    x, mask, weight, bias, labels, _ = decoder()
    for first in (x, weight, bias):
        loss = locked_cross_entropy(x, mask, weight, bias, labels, 8)
        (gradient,) = torch.autograd.grad(loss, first, create_graph=True)
        for second in (x, weight, bias):
            with pytest.raises(NotImplementedError, match="differentiable once"):
                torch.autograd.grad(gradient.sum(), second, retain_graph=True)


@needs_kernels
def test_the_loss_is_as_near_to_float64_as_stock_modules():
    x, mask, weight, bias, labels, truth = decoder()
    wanted = torch.autograd.grad(truth, (x, weight, bias))
    single = [t.detach().float().requires_grad_() for t in (x, weight, bias)]
    ours = locked_cross_entropy(single[0], mask.float(), *single[1:], labels, 8)
    theirs = F.cross_entropy(F.linear(single[0] * mask.float(), *single[1:]).flatten(0, 1), labels.flatten())
    for got, stock_got, want in zip(
        *(torch.autograd.grad(loss, single) for loss in (ours, theirs)), wanted, strict=True
    ):
        assert (got - want).norm() <= 1.5 * (stock_got - want).norm() + 1e-8


def test_no_rows_have_no_mean():
    with pytest.raises(InputError, match="the mean over no rows"):
        locked_cross_entropy(
            torch.ones(0, 2, 3), torch.ones(2, 3), torch.ones(4, 3), None, torch.ones(0, 2).long(), 4
        )
