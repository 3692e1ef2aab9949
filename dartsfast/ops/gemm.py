"""``gemm_``: a matrix product whose bits do not depend on the number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.errors import InputError
from dartsfast.ops.contract import check_dtype, check_like, check_shape, define, not_differentiable, require


def gemm_(out: Tensor, a: Tensor, b: Tensor, accumulate: bool = False) -> None:
    """Set ``out`` to a @ b, or add it.

    Order of operations, an element: K is cut into blocks of 320; a block's sum is a chain
    s = fma(a_ik, b_kj, s) from 0 on, k ascending; the sums are added to what is in ``out``, or else to
    the first of them, in order. There is no derivative: a tensor that autograd follows is refused. Where
    there is no kernel for a device, or no native extension, the library's product is taken.

    Args:
        out: [M, N], adjacent columns; its values are read with ``accumulate`` only. Neither ``a`` nor
            ``b`` may overlap with the memory from its first to its last element.
        a: [M, K], float32 or float64 (on a GPU also bfloat16 and float16), any strides.
        b: [K, N], of the same dtype, any strides.
        accumulate: add to ``out``.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit, or a tensor that autograd
            follows.
    """
    torch.ops.dartsfast.gemm_(out, a, b, accumulate)


def _fake(out: Tensor, a: Tensor, b: Tensor, accumulate: bool) -> None:
    for name, t in (("a", a), ("b", b)):
        if t.dim() != 2 or t.numel() == 0 or t.layout != torch.strided:
            raise InputError(
                f"{name} must be a matrix, not empty, not sparse, got {list(t.shape)}, {t.layout}"
            )
        if t.dtype != out.dtype:
            raise InputError(f"{name} must be {out.dtype} as out, got {t.dtype}")
    check_dtype("out", out)
    check_like("a", a, out)
    check_shape("b", b, [a.shape[1], b.shape[1]], out)
    check_shape("out", out, [a.shape[0], b.shape[1]], out)
    (M, N), (rows, columns) = out.shape, out.stride()
    if (N > 1 and columns != 1) or (M > 1 and rows < N):
        raise InputError(
            f"out must have adjacent columns and rows that do not overlap, got strides {list(out.stride())}"
        )


def _span(t: Tensor) -> tuple[int, int]:
    """Return where the memory from the first to the last element of a matrix begins and ends."""
    (rows, columns), (row, column), first = t.shape, t.stride(), t.data_ptr()
    return first, first + (1 + (rows - 1) * row + (columns - 1) * column) * t.element_size()


def _library(out: Tensor, a: Tensor, b: Tensor, accumulate: bool) -> None:
    _fake(out, a, b, accumulate)
    first, end = _span(out)
    for start, stop in (_span(a), _span(b)):
        require(stop <= first or end <= start, "out must not overlap with the other tensors")
    unchecked(out, a, b, accumulate)


def unchecked(out: Tensor, a: Tensor, b: Tensor, accumulate: bool) -> None:
    """Do the same with the library's product, for arguments that were checked before."""
    if accumulate:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)


define("gemm_", "(Tensor(a!) out, Tensor a, Tensor b, bool accumulate) -> ()", _fake)
torch.library.impl("dartsfast::gemm_", "CompositeExplicitAutograd", _library)
not_differentiable("gemm_")
