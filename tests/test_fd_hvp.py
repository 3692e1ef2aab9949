"""The operators under the bilevel engine: stock numbers, degenerate vectors, and good manners in torch."""

import math

import pytest
import torch
from comparisons import assert_close, same_bits
from op_backends import instruction_set as instruction_set  # fixtures
from op_backends import native_only, needs_kernels
from op_backends import triton_ran as triton_ran
from op_calls import call
from op_cases import VECTORS, Vectors
from op_sampler import Sampler
from test_native import without_extension

import dartsfast.ops as ops
from dartsfast.errors import InputError
from dartsfast.oracle import fd_hvp as oracle

kernels = torch.ops.dartsfast
runs_kernels = pytest.mark.usefixtures("triton_ran")


def stock_virtual_step(w, g, momentum_buffer, scale, lr, momentum, weight_decay):
    """Return where torch's SGD takes ``w``."""
    w = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.SGD([w], lr, momentum=momentum, weight_decay=weight_decay)
    if momentum_buffer is not None:
        optimizer.state[w]["momentum_buffer"] = momentum_buffer.clone()
    w.grad = scale * g
    optimizer.step()
    return w.detach()


STOCK = {
    "fd_norm": torch.linalg.vector_norm,
    "fd_perturb_": lambda w, w0, v, norm, r, sign: w0 + sign * r * v / norm,
    "fd_quotient": lambda plus, minus, norm, r: (plus - minus) * norm / (2 * r),
    "fd_virtual_step_": stock_virtual_step,
}
WITHOUT = """
import torch
from comparisons import assert_close
from op_calls import call
from op_cases import VECTORS
from test_fd_hvp import STOCK
from dartsfast.backends import native
assert native.load() is not None
for case in VECTORS:
    for name, args in case.calls(torch.float64):
        assert_close(call(name, args), STOCK[name](*args))
v = torch.full((3,), torch.nan)
w0 = torch.ones(3)
assert torch.equal(call("fd_perturb_", (v, w0, v, v[0], 1.0, 1.0)), w0)
"""


@needs_kernels
@runs_kernels
@pytest.mark.parametrize("case", VECTORS, ids=str)
def test_float64_matches_stock_pytorch(case, instruction_set):
    for name, args in case.calls(torch.float64):
        assert_close(call(name, args), STOCK[name](*args))


@needs_kernels
@native_only
@pytest.mark.parametrize("case", VECTORS, ids=str)
def test_the_order_of_the_norm_is_the_documented_one(case, instruction_set):
    """A float32 norm hides it. In float64 the oracle is exact for numbers whose squares are."""
    v = Sampler().tensor(case.n).double()
    assert same_bits(ops.fd_norm(v), oracle.fd_norm(v))


@native_only
def test_without_the_extension_stock_functions_do_the_same(pytestconfig):
    without_extension("-c", WITHOUT, PYTHONPATH=f"{pytestconfig.rootpath}:{pytestconfig.rootpath}/tests")


@runs_kernels
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_square_overflows_or_vanishes(scale):
    v = torch.full([10_000], scale)
    torch.testing.assert_close(ops.fd_norm(v), 100 * v[0], rtol=1e-6, atol=0)


@runs_kernels
@pytest.mark.parametrize("value", [0.0, 1e-43, torch.inf, torch.nan])
def test_a_vector_without_a_direction_moves_nothing(value):
    w0 = torch.tensor([1.0, -0.0, 3.0])
    v = torch.tensor([value, 0, 0])
    w, norm = torch.full_like(w0, torch.nan), ops.fd_norm(v)
    ops.fd_perturb_(w, w0, v, norm, 0.01, 1.0)
    assert same_bits(w, w0)
    quotient = ops.fd_quotient(w0, w0, norm, 0.01)
    assert torch.equal(quotient, torch.zeros(3)) if value < 1 else quotient.isnan().all()


@runs_kernels
@pytest.mark.parametrize(("name", "args"), Vectors(50).calls(), ids=lambda v: v if isinstance(v, str) else "")
def test_opcheck(name, args):
    torch.library.opcheck(getattr(kernels, name).default, args)


@runs_kernels
def test_compiled_equals_eager():
    def both(w, w0, v, scale):
        w, norm = w.clone(), kernels.fd_norm(v)
        kernels.fd_perturb_(w, w0, v, norm, 0.1, 1.0)
        kernels.fd_virtual_step_(w, v, None, scale, 0.1, 0.9, 1e-3)
        return w * 2, kernels.fd_quotient(w, w0, norm, 0.1)

    sampler = Sampler()
    args = *(sampler.tensor(50) for _ in range(3)), sampler.tensor()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(*args), both(*args))


def test_written_tensors_have_a_new_version():
    """So that a graph that still needs the old values says so."""
    x = torch.ones(3, requires_grad=True)
    w = torch.ones(3)
    product = (x * w).sum()
    ops.fd_perturb_(w, torch.zeros(3), torch.ones(3), torch.tensor(1.0), 1.0, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(("name", "args"), Vectors(5).calls(), ids=lambda v: v if isinstance(v, str) else "")
def test_tensors_that_autograd_follows_are_refused(name, args):
    for place, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            followed = [*args[:place], value.clone().requires_grad_(), *args[place + 1 :]]
            with pytest.raises(RuntimeError, match=f"dartsfast::{name} has no derivative"):
                call(name, followed)
            with torch.no_grad():
                assert same_bits(call(name, followed), call(name, args))


def test_bad_arguments_have_clear_messages():
    v, one = torch.ones(4), torch.tensor(1.0)
    refused = [
        (lambda: ops.fd_norm(v[:0]), r"v must be \[n\], contiguous, n > 0, got \[0\]"),
        (lambda: ops.fd_norm(v[::2]), "v must be .* contiguous"),
        (lambda: ops.fd_perturb_(v, v, v[:2], one, 0.1, 1), r"v must be \[4\], got \[2\]"),
        (lambda: ops.fd_perturb_(v, v, v, v, 0.1, 1), r"norm must be \[\], got \[4\]"),
        (lambda: ops.fd_perturb_(v, v, v, one, 0.0, 1), "r must be positive, got 0"),
        (lambda: ops.fd_quotient(v, v, one, math.nan), "r must be positive, got nan"),
        (lambda: ops.fd_virtual_step_(v, v, v.double(), one, 0.1, 0, 0), "momentum_buffer must"),
    ]
    for call_it, message in refused:
        with pytest.raises((RuntimeError, InputError), match=message):
            call_it()


@needs_kernels
@native_only
def test_the_cpu_kernels_refuse_half_precision():
    with pytest.raises((RuntimeError, InputError), match="v must be float32 or float64"):
        ops.fd_norm(torch.ones(4).half())


@needs_kernels
@native_only
def test_memory_that_overlaps_with_what_is_written_is_refused():
    memory, one = torch.arange(10.0), torch.tensor(1.0)
    with pytest.raises(RuntimeError, match="w and v must not overlap"):
        ops.fd_perturb_(memory[1:], memory[1:].clone(), memory[:-1], one, 0.1, 1)
    ops.fd_perturb_(memory[:5], memory[:5], memory[5:], one, 1.0, 1)  # in its own place, beside another
    assert memory.tolist() == [5, 7, 9, 11, 13, 5, 6, 7, 8, 9]
