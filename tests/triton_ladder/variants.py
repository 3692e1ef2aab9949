"""What the kernels are compiled for: the operators' calls at real sizes, on memory that nothing touches."""

import contextlib
from dataclasses import dataclass
from unittest import mock

import torch
from aot import LARGE, TARGETS
from dartsfast.kernels import OPERATORS, branch_conv, branch_conv_backward
from op_cases import EDGE, Alphas, Conv, Mix, Node, Norms, Pool, Sampler, Vectors

from dartsfast.ops.contract import CONTRACTS, accumulated

BATCH = 64
CELLS = ((16, 32), (32, 16), (64, 8))  # channels and size of the images of a search network's cells


@dataclass(frozen=True)
class Variant:
    """The calls of a case, with its large tensors stored as ``dtype`` and the others as arithmetic has it."""

    case: object
    dtype: torch.dtype = torch.float32
    targets: tuple = tuple(TARGETS)
    precision: str = "ieee"  # of matrix products

    @property
    def wide(self):
        """Whether all rows of images start at multiples of 16 bytes."""
        names = ("H",) if isinstance(self.case, Node) else ("C", "Ci", "Co")
        rows = [getattr(self.case, name) for name in names if hasattr(self.case, name)]
        return all(row * self.dtype.itemsize % 16 == 0 for row in rows)

    def calls(self):
        """Return the operators' names and arguments that have kernels."""

        def tensor(sampler, *shape):
            large = torch.Size(shape).numel() >= LARGE
            return torch.empty(shape, dtype=self.dtype if large else accumulated(self.dtype))

        with mock.patch.object(Sampler, "tensor", tensor):
            return [(name, args) for name, args in self.case.calls() if name in OPERATORS]

    def launch(self):
        """Call the operators' functions, as the dispatcher does."""
        with contextlib.ExitStack() as stack:
            for module in (branch_conv, branch_conv_backward):
                stack.enter_context(mock.patch.object(module, "PRECISION", self.precision))
            for name, args in self.calls():
                OPERATORS[name](CONTRACTS[name](*args), *args)


def _cases():
    for C, size in CELLS:
        image = BATCH, size, size
        yield f"edge C={C}", Conv(*image, C, C, 1, EDGE, False, True)
        yield f"1x1 {4 * C} to C={C}", Conv(*image, 4 * C, C, 1, (), False, True)
        yield f"pool C={C}", Pool(*image, C, 1)
        yield f"node C={C}", Mix(*image, C, 14, False)
    image = BATCH, 32, 32
    yield "normalised C=16", Conv(*image, 16, 16, 1, EDGE[:1], True, True)
    yield "normalised C=144", Conv(*image, 144, 144, 1, EDGE[:1], True, True)
    yield "edge C=16 stride 2", Conv(*image, 16, 16, 2, EDGE, False, True)
    yield "1x1 64 to C=32 stride 2", Conv(*image, 64, 32, 2, (), False, True)
    yield "pool C=144 stride 2", Pool(*image, 144, 2)
    yield "node C=144", Mix(*image, 144, 2, True)
    yield "rnn H=300", Node(8, 256, 300)
    yield "rnn H=304", Node(2, 256, 304)


# Half precision takes other vectors, not other launch shapes, and compiling takes minutes as it is.
HALF = {"C=16": ("sm_80", "gfx942"), "C=64": ("sm_90",), "C=144": ("sm_80",), "H=304": ("sm_80",)}
VARIANTS = {
    **{f"{label} float32": Variant(case) for label, case in _cases()},
    **{
        f"{label} bfloat16": Variant(case, torch.bfloat16, HALF[label.split()[-1]])
        for label, case in _cases()
        if label.split()[-1] in HALF
    },
    **{
        f"{label} {str(dtype).removeprefix('torch.')}": Variant(case, dtype, ("sm_80",))
        for dtype in (torch.float16, torch.float64)
        for label, case in _cases()
        if label in ("edge C=16", "pool C=16", "node C=16", "rnn H=304")
    },
    "edge C=16 tf32": Variant(dict(_cases())["edge C=16"], targets=("sm_80",), precision="tf32"),
    # Channels that are not a power of two, batches of other numbers of warps.
    "edge C=36 float32": Variant(
        Conv(BATCH, 32, 32, 36, 36, 1, EDGE, False, True), targets=("sm_80", "gfx942")
    ),
    "normalised C=36 float32": Variant(
        Conv(BATCH, 32, 32, 36, 36, 1, EDGE[1:2], True, True), targets=("sm_90",)
    ),
    "1x1 70 to C=33 float32": Variant(Conv(BATCH, 32, 32, 70, 33, 1, (), False, True), targets=("sm_80",)),
    "node C=36 float32": Variant(Mix(BATCH, 32, 32, 36, 14, False), targets=("sm_80",)),
    "rnn B=32 float32": Variant(Node(4, 32, 304), targets=("sm_80",)),
    "rnn B=128 float32": Variant(Node(4, 128, 300), targets=("sm_80",)),
    "edge C=5 float32": Variant(Conv(2, 7, 9, 5, 5, 1, EDGE, True, True, "slice")),
    "pool C=5 float32": Variant(Pool(2, 7, 9, 5, 1, "slice")),
    "node C=5 float32": Variant(Mix(2, 7, 9, 5, 3, True, "slice")),
    "one pixel float32": Variant(Conv(1, 1, 1, 1, 1, 1, EDGE[:1], True, True)),
    "one pixel pool float32": Variant(Pool(1, 1, 1, 1, 1)),
    "one pixel node float32": Variant(Mix(1, 1, 1, 1, 1, True)),
    "one row rnn float32": Variant(Node(1, 1, 1)),
    "alphas float32": Variant(Alphas(((14, 8), (14, 8)))),
    "one alpha float32": Variant(Alphas(((1, 1),))),
    "norms C=16 float32": Variant(Norms(4, 16)),
    "norms C=576 float32": Variant(Norms(2, 576, None)),
    "norms C=5 float32": Variant(Norms(1, 5)),
    "one norm float32": Variant(Norms(1, 1, moved=False)),
    "parameters float32": Variant(Vectors(1_930_624)),
    "one parameter float32": Variant(Vectors(1)),
}
