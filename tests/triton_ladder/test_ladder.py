"""Every Triton kernel in the interpreter: each access to memory is right, and programs run in any order."""
# ruff: noqa: E402 - what follows needs Triton

import pytest
import torch

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("kernels run in Triton's interpreter: set TRITON_INTERPRET=1", allow_module_level=True)

from checked import ORDERS, run
from dartsfast.kernels import OPERATORS
from mended import mended
from op_cases import ALPHAS, EDGE, NODES, NORMS, SMALL, STEPS, VECTORS, Conv, Mix, Node, Pool, Step
from torch.utils._pytree import tree_leaves

CASES = (
    *SMALL,
    Conv(2, 7, 9, 12, 20, 2, EDGE[:2], True, True, "slice"),
    Conv(3, 5, 7, 36, 48, 2, (), False, True, "shifted"),
    Pool(3, 7, 5, 20, 2, "shifted"),
    Mix(3, 9, 7, 36, 3, True, "slice"),
    Mix(2, 7, 5, 12, 14, False, "nchw"),
    ALPHAS[2],
    NODES[1],
    Node(2, 9, 20, "expanded"),
    *STEPS[:2],
    Step(3, 9, 20),
    *VECTORS[:4],
    *NORMS,
)


def bits(tensors):
    """Return the bytes of every tensor."""
    return [t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tree_leaves(tensors)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_access_is_right_and_programs_run_in_any_order(case, dtype):
    orders = ORDERS if dtype == torch.float32 else ORDERS[-1:]
    for name, args in case.calls(dtype):
        if name in OPERATORS:
            with mended():
                first, *others = (bits(run(name, args, order)) for order in orders)
            assert all(other == first for other in others), name
