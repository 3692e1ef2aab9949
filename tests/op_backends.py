"""Which kernels the operators' tests run, and how near to the ordered oracles they must come.

The C++ kernels of every instruction set; with ``TRITON_INTERPRET=1`` the Triton kernels, in Triton's
interpreter. C++ has the oracle's bits throughout. Triton has them but where a matrix product, or a sum over
pixels or rows, takes part: those it adds up tile by tile. There it may be 4 times as far from float64 as the
oracle is, and 8 roundings of the largest element.
"""

import contextlib
import importlib
from unittest import mock

import instruction_sets
import pytest
import torch
from comparisons import same_bits
from op_agreement import assert_near, wide
from op_calls import call, oracle
from op_cases import Norms, Vectors
from torch.utils._pytree import tree_leaves

from dartsfast.backends import availability
from dartsfast.backends.triton import INTERPRETED

BACKEND = "triton" if INTERPRETED else "cpu"
found = availability(BACKEND)
needs_kernels = pytest.mark.skipif(not found.available, reason=found.reason)
native_only = pytest.mark.skipif(INTERPRETED, reason="says nothing of the Triton kernels")
MODULES = (
    "alpha_softmax",
    "branch_conv",
    "branch_conv_backward",
    "fd_hvp",
    "grouped",
    "mixed_sum",
    "norm_stats",
    "pool3x3",
    "reduce",
    "rnn_node",
)
"""Those of ``dartsfast.kernels`` that launch."""


@pytest.fixture(params=["triton"] if INTERPRETED else instruction_sets.ALL)
def instruction_set(request):
    """Run the test on every instruction set of the C++ kernels, emulated where need be, or on Triton's."""
    if INTERPRETED:
        yield
    else:
        yield from running_on(request.param, request)


def running_on(name, request):
    """Have the C++ kernels run on an instruction set until taken up again; the test's report says so."""
    kernels = torch.ops.dartsfast
    before = kernels.cpu_instruction_set()
    try:
        way = instruction_sets.way(name)
    except instruction_sets.UnavailableError as reason:
        pytest.skip(str(reason))
    kernels.set_cpu_instruction_set(way)
    assert kernels.cpu_instruction_set() == way
    request.node.user_properties.append((instruction_sets.RAN, way))
    yield
    kernels.set_cpu_instruction_set(before)


@pytest.fixture
def triton_ran(request, monkeypatch):
    """In the interpreter: round as devices do, allocate memory full of NaN, and see that kernels ran."""
    if not INTERPRETED or request.node.get_closest_marker("skipif") is native_only.mark:
        yield
        return
    from mended import mended

    monkeypatch.setenv("DARTSFAST_SELFCHECK", "0")  # whose launches are not the test's
    names = recorded(monkeypatch)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    with mended(), few_programs():
        yield
    torch.use_deterministic_algorithms(False)
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    operators = [name for name, _ in case.calls()] if case else []
    if not isinstance(case, Vectors | Norms):
        del operators[1:]  # what follows is the backward, which not every test asks for
    assert names and {f"{name.rstrip('_')}_kernel" for name in operators} <= names


def recorded(monkeypatch):
    """Return a set that takes the name of every kernel that is launched."""
    names = set()

    def recorder(launch):
        def record(kernel, *args, **meta):
            names.add(kernel.__name__)
            launch(kernel, *args, **meta)

        return record

    for name in MODULES:
        module = importlib.import_module(f"dartsfast.kernels.{name}")
        monkeypatch.setattr(module, "launch", recorder(module.launch))
    return names


@contextlib.contextmanager
def few_programs(times=8):
    """Make tiles of Triton kernels ``times`` as large within the context.

    The interpreter's time goes by the number of programs, not by their size.
    """
    from dartsfast.kernels import branch_conv, branch_conv_backward, fd_hvp, images, rnn_node

    def tile(*sizes, tile=branch_conv.tile):
        shape = tile(*sizes)
        return {**shape, "BP": times * shape["BP"]}

    with (
        mock.patch.object(branch_conv, "tile", tile),
        mock.patch.object(branch_conv_backward, "tile", tile),
        mock.patch.object(branch_conv_backward, "TAPS", times * branch_conv_backward.TAPS),
        mock.patch.object(fd_hvp, "BLOCK", times * fd_hvp.BLOCK),
        mock.patch.object(images, "THREADS", times * images.THREADS),
        mock.patch.object(rnn_node, "CHANNELS", times * rnn_node.CHANNELS),
    ):
        yield


def exact(name, args):
    """Return how many of an operator's results must have the oracle's bits, None for all."""
    if not INTERPRETED:
        return None
    if name == "rnn_node":
        return 0 if args[3] is None else None  # without norm it takes the batch's
    if name == "rnn_node_":
        return 0 if args[-2] else None
    if name.startswith("rnn_node_backward"):
        own = args[7] if name == "rnn_node_backward" else args[-2]
        return 0 if own else 2  # likewise; the third is the gradient of the weights
    if name == "pool3x3":
        return 1  # the second is the moments
    return 0 if name in ("branch_conv", "branch_conv_backward", "fd_norm", "mixed_sum_backward") else None


def assert_agrees(name, args):
    """Check what an operator gives for float32 against its oracle, to the bit or within the bounds above."""
    got, wanted = tree_leaves(call(name, args)), tree_leaves(oracle(name, args))
    count = exact(name, args)
    assert same_bits(got[:count], wanted[:count]), name
    if count is not None:
        truth = tree_leaves(oracle(name, wide(args)))
        for a, b, exactly in zip(got[count:], wanted[count:], truth[count:], strict=True):
            assert_near(a, b, exactly, name)
