"""Random bad arguments: an operator refuses them with a Python exception or gives the right result."""

import random
import subprocess
import sys

import pytest
import torch
from comparisons import assert_close, same_bits
from op_agreement import rounded
from op_calls import ORACLES, call
from op_cases import Alphas, Classes, Conv, Locked, Mix, Node, Norms, Pool, Product, Step, Vectors
from torch.utils._pytree import tree_leaves, tree_map

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.backends import availability
from dartsfast.backends.table import STORAGE_DTYPES

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)

SETS = 500  # of arguments, an operator
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, OverflowError, AttributeError)
IMAGES = ("branch_conv", "pool3x3", "mixed_sum")  # and their gradients: they take images in 16 bits
LAYOUTS = ("plain", "nchw", "slice", "shifted", "transposed")
# An image of 2^60 pixels that takes no memory: the sizes of scratch memory overflow 64 bits.
OVERFLOW = """
import torch
import dartsfast.ops
x = torch.zeros(1).expand(1, 2**30, 2**30, 1)
weight = torch.ones(1, 1, 1, 1)
try:
    torch.ops.dartsfast.branch_conv_backward(
        [x], [], None, x, None, [], [weight], [], 1, True, None, False, True
    )
except RuntimeError:
    print("refused")
"""


def random_call(name, rng):
    """Return good arguments of the operator."""

    def few():
        return rng.randint(1, 3)

    def size():
        return rng.randint(1, 7)

    def flag():
        return rng.random() < 0.5

    if name.startswith("alpha"):
        case = Alphas(tuple((size(), size()) for _ in range(few())))
    elif name.startswith("cross"):
        case = Classes(few(), size(), rng.choice([1, 100]))
    elif name.startswith("gemm"):
        case = Product(size(), size(), size(), rng.choice(["plain", "transposed", "strided", "expanded"]))
    elif name.startswith("locked"):
        case = Locked(size(), few(), size(), size(), layout=rng.choice(["plain", "transposed", "slice"]))
    elif name.startswith("fd"):
        case = Vectors(rng.randint(1, 100))
    elif name.startswith("norm"):
        case = Norms(few(), size(), rng.choice([None, 0.1]), flag(), rng.randint(2, 99))
    elif name.startswith("rnn"):
        kind = Step if name.endswith("_") else Node
        case = kind(few(), size(), size(), rng.choice(["plain", "transposed", "slice", "expanded"]))
    else:
        image, layout = (few(), size(), size(), size()), rng.choice(LAYOUTS)
        if name.startswith("branch"):
            taps = tuple((rng.choice([1, 3, 5]), few()) for _ in range(rng.randint(0, 3)))
            case = Conv(*image, size(), rng.randint(1, 2), taps, flag(), flag(), layout)
        elif name.startswith("pool"):
            case = Pool(*image, rng.randint(1, 2), layout)
        else:
            case = Mix(*image, few(), flag(), layout)
    dtype = rng.choice([torch.float32, torch.float32, torch.float64])
    return rng.choice([args for called, args in case.calls(dtype) if called == name])


def resized(t, rng):
    """Return t with another size of one dimension, if it has any."""
    if t.dim() == 0:
        return t
    dim = rng.randrange(t.dim())
    return rng.choice(
        [
            lambda: t.narrow(dim, 0, 0),
            lambda: t.narrow(dim, 0, min(1, t.shape[dim])),
            lambda: t.repeat_interleave(2, dim),
            lambda: t.transpose(dim, -1),
            lambda: t.narrow(dim, 0, max(0, t.shape[dim] - 1)),
        ]
    )()


def expanded(t, rng):
    """Return t with one dimension, or all, of stride 0: legal."""
    if t.numel() == 0 or t.dim() == 0:
        return t
    if rng.random() < 0.3:
        return t.flatten()[0].expand(t.shape)
    dim = rng.randrange(t.dim())
    return t.narrow(dim, 0, 1).expand(t.shape)


def other_tensor(t, rng):
    """Return t changed in one way; a few of them leave it legal."""
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
    return rng.choice(
        [
            lambda: t.reshape(-1),
            lambda: t[None],
            lambda: t.sum(),
            lambda: t.new_empty(0),
            lambda: t.to(rng.choice(dtypes)),
            lambda: t.to(torch.complex64),
            lambda: t.to("meta"),
            lambda: t.detach().to_sparse(),
            lambda: t.detach().clone().requires_grad_(t.is_floating_point()),
            lambda: torch._neg_view(t),
            lambda: resized(t, rng),
            lambda: resized(t, rng),
            lambda: resized(t, rng),
            lambda: expanded(t, rng),
            lambda: expanded(t, rng),
        ]
    )()


def mutated(value, rng):
    """Return something else in the place of an argument, or of an element of one."""
    if isinstance(value, (list, tuple)):
        if not value:
            return rng.choice([None, 1, [1], [None], [torch.ones(2, 2)]])
        value, place = list(value), rng.randrange(len(value))
        changed = [*value[:place], mutated(value[place], rng), *value[place + 1 :]]
        return rng.choice([changed, changed, changed, value[:-1], [*value, value[place]], [], None, value[0]])
    if isinstance(value, torch.Tensor) and rng.random() < 0.85:
        return other_tensor(value, rng)
    if isinstance(value, int) and rng.random() < 0.7:
        return rng.choice([0, -1, 2, 3, 4, 17, 2**31, 2**40 + 1, 2**62, -(2**63), 2**64])
    return rng.choice([None, 0, 1, 2.5, "x", [], torch.ones(3), torch.ones(1, 2, 3, 4), 2**70])


def check_result(name, args, got):
    """Check what an operator gave for arguments that it took: shape inference takes them too."""
    if all(t.device.type == "meta" for t in tree_leaves(args) if isinstance(t, torch.Tensor)):
        assert all(t.device.type == "meta" for t in tree_leaves(got))
        return
    given = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
    stored = name.startswith(IMAGES) and any(t.dtype in STORAGE_DTYPES for t in given)
    with torch.no_grad():
        wanted = rounded(name, args) if stored else ORACLES[name](*args)
    assert {t.device.type for t in tree_leaves(got)} <= {"cpu"}
    if any(t.dtype == torch.float64 for t in tree_leaves(got)):
        # A negative variance, say, gives NaN, in the same places.
        assert all(
            torch.equal(a.isnan(), b.isnan())
            for a, b in zip(tree_leaves(got), tree_leaves(wanted), strict=True)
        )
        assert_close(*(tree_map(lambda t: t.nan_to_num(), tree_leaves(r)) for r in (got, wanted)), floor=1)
    else:
        assert same_bits(got, wanted)
    inferred = call(name, tree_map(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t, args))
    pairs = zip(tree_leaves(got), tree_leaves(inferred), strict=True)
    assert all(a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride() for a, b in pairs)


@pytest.mark.parametrize("name", ORACLES)
def test_bad_arguments_are_refused_or_harmless(name):
    rng = random.Random(name)
    refused = 0
    for _ in range(SETS):
        args = list(random_call(name, rng))
        for place in rng.sample(range(len(args)), min(len(args), rng.choice([1, 1, 2]))):
            args[place] = mutated(args[place], rng)
        try:
            got = call(name, args)
        except REFUSALS:
            refused += 1
        else:
            check_result(name, args, got)
    assert SETS // 2 < refused < SETS


def test_sizes_that_overflow_are_refused():
    done = subprocess.run([sys.executable, "-c", OVERFLOW], capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", (done.returncode, done.stderr)
