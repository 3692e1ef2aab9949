"""The checker of the interpreter's runs finds every planted mistake, and nothing in kernels without one."""
# ruff: noqa: E402 - what follows needs Triton

import pytest
import torch

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("kernels run in Triton's interpreter: set TRITON_INTERPRET=1", allow_module_level=True)

import toys
from checked import ORDERS, Checked, KernelError
from dartsfast.kernels.launch import launch
from mended import mended

from dartsfast.oracle import arithmetic

N, BLOCK = 45, 16
GRID = (triton.cdiv(N, BLOCK),)


def launched(kernel, x, *others, order="forward", size=N, **meta):
    """Return what a kernel leaves in new memory."""
    with Checked(order) as memory:
        out = x.new_empty(size)
        launch(kernel, GRID, x, out, *others, N, BLOCK=BLOCK, **meta)
        memory.require_written(out)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_passes_in_any_order(order):
    x = torch.randn(N)
    assert torch.equal(launched(toys.double_kernel, x, order=order), 2 * x)


@pytest.mark.parametrize("view", ["slice", "transposed", "expanded"])
def test_views_are_followed_exactly(view):
    storage = torch.randn(3, N)
    x = {
        "slice": storage[1],
        "transposed": storage.T.contiguous().T[1],
        "expanded": storage[1, :1].expand(N),
    }[view]
    if view == "slice":
        assert torch.equal(launched(toys.double_kernel, x), 2 * x)
    else:
        with pytest.raises(KernelError, match="outside of tensor 0"):
            launched(toys.double_kernel, x)


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (toys.missing_store_mask_kernel, "program 2 of missing_store_mask_kernel goes outside of tensor 1"),
        (toys.missing_load_mask_kernel, "goes outside of tensor 0"),
        (toys.same_place_kernel, "program 1 of same_place_kernel writes what program 0 wrote"),
        (toys.atomic_kernel, "atomic"),
        (toys.unwritten_kernel, "output 0, .45., was left unwritten"),
        (toys.reads_output_kernel, "reads what nothing has written in tensor 1"),
        (toys.two_values_kernel, "stores two values into one element"),
    ],
)
def test_planted_mistakes_are_found(kernel, complaint):
    with pytest.raises(KernelError, match=complaint):
        launched(kernel, torch.randn(N))


@pytest.mark.parametrize("order", ORDERS)
def test_races_are_found_in_any_order(order):
    with pytest.raises(KernelError, match="program . of shift_in_place_kernel (reads|writes) what program"):
        launched(toys.shift_in_place_kernel, torch.randn(N), order=order)
    with Checked(order), pytest.raises(KernelError, match="writes what program . wrote|reads what program"):
        launch(toys.accumulating_kernel, GRID, torch.randn(N), torch.zeros(1), N, BLOCK=BLOCK)


def test_a_neighbour_in_memory_is_outside():
    both = torch.randn(2 * N)
    with Checked(), pytest.raises(KernelError, match="outside of tensor 0"):
        launch(toys.neighbour_kernel, GRID, both[:N], both[N:], N, BLOCK=BLOCK)


def test_reading_back_needs_a_barrier():
    x = torch.randn(N)
    launched(toys.no_barrier_kernel, x, BARRIER=True)
    with pytest.raises(KernelError, match="without a barrier"):
        launched(toys.no_barrier_kernel, x, BARRIER=False)


def test_a_masked_load_without_other_is_poison():
    got = launched(toys.masked_read_kernel, torch.ones(N), size=GRID[0])
    assert got[:2].tolist() == [BLOCK, BLOCK] and got[2].isnan()


@pytest.mark.parametrize("order", ORDERS)
def test_what_one_program_leaves_for_another_is_a_race(order):
    with Checked(order), pytest.raises(KernelError, match="previous_kernel (reads|writes) what program"):
        scratch = torch.zeros(GRID[0] + 1)
        launch(toys.previous_kernel, GRID, torch.randn(N), torch.empty(GRID[0]), scratch, N, BLOCK=BLOCK)


def test_memory_is_written_by_pytorch_and_by_earlier_launches():
    x = torch.randn(N)
    with Checked() as memory:
        scratch, out = torch.empty(2, N), torch.empty_like(x)
        launch(toys.double_kernel, GRID, x, scratch[0], N, BLOCK=BLOCK)
        with pytest.raises(KernelError, match="unwritten"):
            memory.require_written(scratch)
        with pytest.raises(KernelError, match="reads what nothing has written"):
            launch(toys.double_kernel, GRID, scratch[1], out, N, BLOCK=BLOCK)
        with pytest.raises(KernelError, match="aten.sum.* reads what nothing has written"):
            scratch.sum()
        scratch[1].copy_(x)
        launch(toys.double_kernel, GRID, scratch[1].contiguous(), out, N, BLOCK=BLOCK)
        memory.require_written([scratch, out])
    assert torch.equal(scratch[0], out)


def test_nothing_is_left_behind():
    before = triton.runtime.interpreter.GridExecutor.__call__
    with pytest.raises(KernelError):
        launched(toys.atomic_kernel, torch.randn(N))
    assert triton.runtime.interpreter.GridExecutor.__call__ is before


def test_the_mended_interpreter_rounds_a_multiply_add_once():
    a, b, c = (torch.randn(1024) for _ in range(3))
    c = torch.where(torch.arange(1024) % 2 == 0, c, -(a * b))
    out = torch.empty(1024)
    with mended():
        launch(toys.fma_kernel, (1,), a, b, c, out, BLOCK=1024)
    assert torch.equal(out, arithmetic.fma(a, b, c))
    assert not torch.equal(out, a * b + c)


@pytest.mark.parametrize("types", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_the_mended_interpreter_converts_as_pytorch_does(types):
    bits = torch.randint(-(2**31), 2**31, [1024], dtype=torch.int32)
    bits[:4] = torch.tensor([0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x00000001])  # overflow, ties, subnormal
    x = bits.view(torch.float32).to(types[0])
    out = torch.empty(1024, dtype=types[1])
    with mended():
        launch(toys.cast_kernel, (1,), x, out, BLOCK=1024)
    assert torch.equal(out.nan_to_num(), x.to(types[1]).nan_to_num())
