"""The matrix product: the oracle's bits on every instruction set and thread count, and good manners."""

import pytest
import torch
from comparisons import assert_close, same_bits
from op_backends import instruction_set as instruction_set  # a fixture
from op_backends import needs_kernels
from op_calls import call
from op_cases import PRODUCTS, Product
from test_native import without_extension

from dartsfast.errors import InputError
from dartsfast.ops import gemm_
from dartsfast.oracle import gemm as oracle

WITHOUT = """
import torch
import dartsfast.ops
from comparisons import assert_close
from op_calls import call
from op_cases import PRODUCTS
from dartsfast.backends import native
assert native.load() is not None
for case in PRODUCTS:
    for name, (out, a, b, accumulate) in case.calls(torch.float64):
        assert_close(call(name, (out, a, b, accumulate)), a @ b + (out if accumulate else 0))
square = torch.ones(4, 4)
try:
    dartsfast.ops.gemm_(square, square.T, torch.ones(4, 4))
except dartsfast.errors.InputError as error:
    assert "out must not overlap" in str(error)
else:
    raise AssertionError("out may not be an argument")
"""


@needs_kernels
@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_float32_has_the_bits_of_the_oracle(case, instruction_set):
    for name, args in case.calls():
        assert same_bits(call(name, args), oracle.gemm_(*args))


@needs_kernels
@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_float64_matches_stock_pytorch(case, instruction_set):
    for name, args in case.calls(torch.float64):
        out, a, b, accumulate = args
        assert_close(call(name, args), a @ b + (out if accumulate else 0))


@needs_kernels
@pytest.mark.parametrize("case", [Product(300, 350, 100), Product(70, 700, 400, "transposed")], ids=str)
def test_same_bits_for_any_number_of_threads(case):
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append([call(name, args) for name, args in case.calls()])
    torch.set_num_threads(before)
    assert all(same_bits(result, results[0]) for result in results)


@needs_kernels
def test_a_block_of_its_own_is_as_exact_as_the_librarys():
    """One chain over all of K would be several times as far from the truth."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in [(64, 20000), (20000, 64)])
    truth, out = a.double() @ b.double(), torch.empty(64, 64)
    gemm_(out, a, b)
    assert (out - truth).norm() <= 1.5 * (a @ b - truth).norm()


@needs_kernels
def test_values_that_are_not_finite_stay_in_their_rows_and_columns():
    a, b, out = torch.ones(30, 400), torch.ones(400, 40), torch.full((30, 40), torch.nan)
    a[7, 350], b[20, 33] = torch.nan, torch.inf
    gemm_(out, a, b)
    assert out[7].isnan().all() and out[:7, 33].isposinf().all()
    assert torch.equal(out[:7, :33], torch.full((7, 33), 400.0))


@needs_kernels
@pytest.mark.parametrize(("name", "args"), Product(3, 4, 5).calls())
def test_opcheck(name, args):
    out, a, b, accumulate = args
    torch.library.opcheck(torch.ops.dartsfast.gemm_.default, (out.contiguous(), a, b, accumulate))


@needs_kernels
def test_compiled_equals_eager():
    def double(a, b):
        out = torch.empty(len(a), b.shape[1])
        gemm_(out, a, b)
        gemm_(out, a, b, accumulate=True)
        return out

    a, b = Product(5, 6, 7).calls()[0][1][1:3]
    assert same_bits(torch.compile(double, fullgraph=True, backend="aot_eager")(a, b), double(a, b))


def test_without_the_extension_the_library_does_the_same(pytestconfig):
    without_extension("-c", WITHOUT, PYTHONPATH=f"{pytestconfig.rootpath}:{pytestconfig.rootpath}/tests")


def test_tensors_that_autograd_follows_are_refused():
    name, args = Product(3, 4, 5).calls()[1]
    for place in range(3):
        followed = [*args[:place], args[place].clone().requires_grad_(), *args[place + 1 :]]
        with pytest.raises(RuntimeError, match="dartsfast::gemm_ has no derivative"):
            call(name, followed)
        with torch.no_grad():
            assert same_bits(call(name, followed), call(name, args))


@needs_kernels
def test_bad_arguments_have_clear_messages():
    out, a, b = torch.ones(3, 5), torch.ones(3, 4), torch.ones(4, 5)
    refused = [
        ((out, a, b[1:]), r"b must be \[4, -1\], got \[3, 5\]"),
        ((out[1:], a, b), r"out must be \[3, 5\], got \[2, 5\]"),
        ((out, a.double(), b), "a must have the dtype"),
        ((out.to("meta"), a.bfloat16().to("meta"), b.to("meta")), "a must be torch.float32 as out"),
        ((out[0], a, b), r"out must be \[3, 5\], got \[5\]"),
        ((out, a[:, :0], b[:0]), "a and b must not be empty"),
        ((out.half(), a.half(), b.half()), "out must be float32 or float64"),
        ((torch.ones(5, 3).T, a, b), "out must have adjacent columns.* got strides 1 and 3"),
        ((torch.ones(1, 5).expand(3, 5), a, b), "rows that do not overlap.* got strides 0 and 1"),
        ((torch.ones(7).as_strided((3, 5), (1, 1)), a, b), "rows that do not overlap"),
    ]
    for args, message in refused:
        with pytest.raises((RuntimeError, InputError), match=message):
            gemm_(*args)
    square = torch.ones(4, 4)
    for one, other in ((square, torch.ones(4, 4)), (torch.ones(4, 4), square.T)):
        with pytest.raises(RuntimeError, match="out must not overlap with the other tensors"):
            gemm_(square, one, other)
