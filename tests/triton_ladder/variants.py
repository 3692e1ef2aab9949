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
NVIDIA = ("sm_80", "sm_90")
OLDEST = ("sm_80", "gfx942")  # of each vendor
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
    """Yield what networks launch; four branches take so long to compile that one edge alone has them."""
    for C, size in CELLS:
        image = BATCH, size, size
        if C != 32:
            yield f"edge C={C}", Conv(*image, C, C, 1, EDGE if C == 16 else EDGE[3:], False, True)
            yield f"1x1 {4 * C} to C={C}", Conv(*image, 4 * C, C, 1, (), False, True)
        yield f"pool C={C}", Pool(*image, C, 1)
        yield f"node C={C}", Mix(*image, C, 14 if C == 16 else 4, False)
    image = BATCH, 32, 32
    yield "normalised C=16", Conv(*image, 16, 16, 1, EDGE[1:2], True, True)
    yield "normalised C=144", Conv(*image, 144, 144, 1, EDGE[:1], True, True)
    yield "dilated C=16 stride 2", Conv(*image, 16, 16, 2, EDGE[3:], False, True)
    yield "1x1 64 to C=32 stride 2", Conv(*image, 64, 32, 2, (), False, True)
    yield "pool C=144 stride 2", Pool(*image, 144, 2)
    yield "node C=144", Mix(*image, 144, 2, True)
    yield "rnn H=300", Node(8, 256, 300)
    yield "rnn H=304", Node(2, 256, 304)


def _other_blocks():
    """Yield what heuristics choose of other numbers of channels and rows; configurations.py asks for all."""
    image = BATCH, 16, 16
    for Ci, Co in ((16, 32), (16, 64), (32, 16), (32, 32), (36, 36)):
        yield f"conv {Ci} to {Co}", Variant(Conv(*image, Ci, Co, 1, EDGE[:1], True, True))
    for Ci, Co in ((31, 16), (31, 32), (31, 64), (15, 64), (96, 16), (96, 32)):  # with another register limit
        yield f"conv {Ci} to {Co}", Variant(Conv(*image, Ci, Co, 1, EDGE[:1], False, True), targets=NVIDIA)
    for Co in (33, 64):
        yield f"1x1 70 to {Co}", Variant(Conv(*image, 70, Co, 1, (), False, True), targets=NVIDIA)
    for B in (64, 128):
        yield f"rnn B={B}", Variant(Node(4, B, 304))
    yield "edge C=5", Variant(Conv(2, 7, 9, 5, 5, 1, EDGE[1:2], True, True, "slice"))
    yield "pool C=5", Variant(Pool(2, 7, 9, 5, 1, "slice"))
    yield "node C=5", Variant(Mix(2, 7, 9, 5, 3, True, "slice"))
    yield "one pixel", Variant(Conv(1, 1, 1, 1, 1, 1, EDGE[:1], True, True), targets=("sm_80",))
    yield "one pixel pool", Variant(Pool(1, 1, 1, 1, 1))
    yield "one pixel node", Variant(Mix(1, 1, 1, 1, 1, True))
    yield "one row rnn", Variant(Node(1, 1, 1))
    yield "alphas", Variant(Alphas(((14, 8), (14, 8))))
    yield "one alpha", Variant(Alphas(((1, 1),)))
    yield "norms C=16", Variant(Norms(4, 16))
    yield "norms C=576", Variant(Norms(2, 576, None))
    yield "norms C=5", Variant(Norms(1, 5))
    yield "one norm", Variant(Norms(1, 1, moved=False))
    yield "parameters", Variant(Vectors(1_930_624))
    yield "one parameter", Variant(Vectors(1))


def _halves():
    """Yield launches on bfloat16: of pools and nodes all, as their tiles hold more pixels."""
    for C in (8, 16, 32, 64):
        yield f"pool C={C}", Variant(Pool(BATCH, 32, 32, C, 1), torch.bfloat16)
        yield f"node C={C}", Variant(Mix(BATCH, 32, 32, C, 4, True), torch.bfloat16)
    yield "parameters", Variant(Vectors(1_930_624), torch.bfloat16)
    cases = dict(_cases())
    for label, targets in (
        *(("edge C=16", ("sm_80",)), ("1x1 64 to C=16", ("gfx942",)), ("1x1 256 to C=64", ("sm_90",))),
        *(("normalised C=16", ("sm_90", "gfx942")), ("normalised C=144", ("sm_80",)), ("rnn H=304", NVIDIA)),
    ):
        yield label, Variant(cases[label], torch.bfloat16, targets)


VARIANTS = {
    **{f"{label} float32": Variant(case) for label, case in _cases()},
    **{f"{label} float32": variant for label, variant in _other_blocks()},
    **{f"{label} bfloat16": variant for label, variant in _halves()},
    **{
        f"{label} {str(dtype).removeprefix('torch.')}": Variant(dict(_cases())[label], dtype, targets)
        for dtype, targets in ((torch.float16, tuple(TARGETS)), (torch.float64, OLDEST))
        for label in ("normalised C=16", "pool C=16", "node C=16", "rnn H=304")
    },
    "normalised C=16 tf32": Variant(dict(_cases())["normalised C=16"], targets=OLDEST, precision="tf32"),
}
