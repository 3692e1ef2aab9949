"""The oracles' fused multiply-add rounds once, as the one of the C library does."""

import ctypes
import ctypes.util
import itertools

import pytest
import torch
from comparisons import same_bits

from dartsfast.oracle.arithmetic import fma

fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
fmaf.argtypes, fmaf.restype = [ctypes.c_float] * 3, ctypes.c_float


def once(a, b, c):
    a, b, c = torch.broadcast_tensors(a, b, c)
    numbers = zip(*(t.flatten().tolist() for t in (a, b, c)), strict=True)
    return torch.tensor([fmaf(*triple) for triple in numbers]).reshape(a.shape)


MIDWAY = {
    "normal": (1 + 2**-12, 1 + 2**-12, 2.0**-80),
    "normal, beside a larger addend": (1 + 2**-23, (1 - 2**-23) * 2**-24, 1 + 2**-23),
    "subnormal": ((1 + 2**-23) * 2**-75, (1 - 2**-23) * 2**-75, 2**-127 + 2**-149),
    "subnormal and exact": (2.0**-75, 2.0**-75, 2.0**-127),
    "between the largest and infinity": (601.0 * 1801, 31 * 2.0**103, 1.0),
}
"""Factors and addends whose sum lies, in float64, midway between two float32."""


@pytest.mark.parametrize("numbers", MIDWAY.values(), ids=MIDWAY)
def test_what_lies_midway_is_rounded_once(numbers):
    signed = itertools.product(*((x, -x) for x in numbers))
    a, b, c = torch.tensor([[*signs, 0.0] for signs in signed])[:, :3].unbind(1)
    assert same_bits(fma(a, b, c), once(a, b, c))
    others = torch.arange(12.0).reshape(3, 4, 1)  # beside them, and broadcast
    assert same_bits(fma(others, others.mT, c[3]), once(others, others.mT, c[3]))
    assert same_bits(fma(torch.cat([a, a]), b[0], c[:1]), once(torch.cat([a, a]), b[0], c[:1]))


def test_everything_is_rounded_once():
    special = torch.tensor([0.0, -0.0, 1e-42, -3e38, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([special, torch.randn(13, generator=torch.Generator().manual_seed(0))])
    a, b, c = x[:, None, None], x[:, None], torch.cat([x, -x[7:12] * x[7:12], x * 2**-30])
    assert same_bits(fma(a, b, c), once(a, b, c))


def test_float64_is_rounded_twice():
    a, b, c = (torch.randn(100, dtype=torch.float64) for _ in range(3))
    assert torch.equal(fma(a, b, c), a * b + c)
