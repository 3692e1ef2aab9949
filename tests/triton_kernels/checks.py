"""What tests of the Triton kernels share: calls on poisoned outputs, and comparisons."""

import math

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from dartsfast.backends import triton as triton_backend
from dartsfast.ops.contract import CONTRACTS
from tests.op_calls import ORACLES, moved

DEVICE = "cpu" if triton_backend.INTERPRETED else "cuda"
HALVES = (torch.bfloat16, torch.float16)
available = triton_backend.INTERPRETED or torch.cuda.is_available()
MARKS = [
    pytest.mark.skipif(
        not available or triton_backend.load() is not None, reason=str(triton_backend.missing())
    ),
    pytest.mark.usefixtures("exact"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's, of NaN and infinity
]


def tensors(f, args):
    """Return ``args`` with f of every tensor."""
    return tree_map(lambda t: f(t) if isinstance(t, torch.Tensor) else t, args)


def run(name, args):
    """Return what the kernel of an operator leaves of outputs full of NaN, on the CPU."""
    from dartsfast.kernels import OPERATORS

    args = moved(args, DEVICE)
    out = tensors(lambda t: t.fill_(torch.nan), CONTRACTS[name](*args))
    OPERATORS[name](out, *args)
    return tensors(lambda t: t.cpu(), out)


def oracle(name, args):
    """Return the leaves of what the oracle gives."""
    return tree_leaves(ORACLES[name](*args))


def assert_sum(got, wanted, magnitude, length):
    """Check sums of ``length`` terms in two orders against the sum ``magnitude`` of absolute values.

    In either order a term passes through at most 8 + log2(length) roundings of 2^-24: those of its own
    products, 8 additions in a row, then trees. Twice that for two orders.
    """
    bound = 2 * (8 + math.log2(length)) * 2.0**-24 * magnitude.double()
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert ((got.double() - wanted.double()).abs() <= bound).all()


def assert_rounded(got, wanted, roundings, magnitude=None, floor=0):
    """Check ``got`` against float64 numbers: arithmetic in float32, then storage, which rounds once.

    Args:
        got: of any dtype.
        wanted: float64.
        roundings: of the arithmetic, each of 2^-24 of ``magnitude``.
        magnitude: the largest number on the way to an element; that of ``wanted`` unless given.
        floor: what may be 0.
    """
    info = torch.finfo(got.dtype)
    magnitude = wanted.abs() if magnitude is None else magnitude
    storage = (wanted.abs() * (info.eps / 2)).clamp(min=info.smallest_normal * info.eps)
    assert got.shape == wanted.shape
    bound = storage * (1 + 2.0**-10) + roundings * 2.0**-24 * magnitude + floor
    assert ((got.double() - wanted).abs() <= bound).all()
