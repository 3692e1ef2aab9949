"""What the kernels are compiled for: the operators' calls at real sizes, on memory that nothing touches."""

import contextlib
import functools
import itertools
from dataclasses import dataclass
from unittest import mock

import torch
from aot import LARGE, TARGETS, launched
from cells import Cells
from dartsfast.kernels import OPERATORS, branch_conv, branch_conv_backward
from op_cases import EDGE, Alphas, Conv, Mix, Node, Norms, Pool, Step, Vectors
from op_sampler import Sampler

from dartsfast.ops.contract import CONTRACTS, accumulated

BATCH = 64
CELLS = ((16, 32), (32, 16), (64, 8))  # channels and size of the images of a search network's cells


@dataclass(frozen=True)
class Variant:
    """The calls of a case, with its large tensors stored as ``dtype`` and the others as arithmetic has it.

    ``launches`` says what is compiled of them: "all"; of every configuration only the "largest", the one
    with most tensors, as its other options leave code out; or that of "new" configurations, which no variant
    before has.
    """

    case: object
    dtype: torch.dtype = torch.float32
    launches: str = "all"
    targets: tuple = tuple(TARGETS)
    precision: str = "ieee"  # of matrix products

    @property
    def wide(self):
        """Whether all rows of images start at multiples of 16 bytes."""
        names = ("H",) if isinstance(self.case, Node | Step) else ("C", "Ci", "Co")
        rows = [getattr(self.case, name) for name in names if hasattr(self.case, name)]
        return all(row * self.dtype.itemsize % 16 == 0 for row in rows)

    def calls(self):
        """Return the operators' names and arguments that have kernels."""

        def tensor(sampler, *shape):
            large = torch.Size(shape).numel() >= LARGE
            return torch.empty(shape, dtype=self.dtype if large else accumulated(self.dtype))

        with mock.patch.object(Sampler, "tensor", tensor):
            return [(name, args) for name, args in self.case.calls(self.dtype) if name in OPERATORS]

    def launch(self):
        """Call the operators' functions, as the dispatcher does, or run the cells."""
        with contextlib.ExitStack() as stack:
            for module in (branch_conv, branch_conv_backward):
                stack.enter_context(mock.patch.object(module, "PRECISION", self.precision))
            if isinstance(self.case, Cells):
                self.case.launch(self.dtype)
                return
            for name, args in self.calls():
                OPERATORS[name](CONTRACTS[name](*args), *args)

    def chosen(self, launches, known):
        """Return {place: launch} of what is compiled, where the ``known`` configurations are already."""
        if self.launches == "all":
            return dict(enumerate(launches))
        by_tensors = sorted(range(len(launches)), key=lambda place: len(launches[place].tensors))
        largest = {launches[place].configuration: place for place in by_tensors}  # the last one stays
        left_out = known if self.launches == "new" else ()
        return {place: launches[place] for one, place in largest.items() if one not in left_out}


@functools.cache
def places(target):
    """Return which launches of every variant are compiled for ``target``, numbered from 0: {label: places}.

    Nothing is compiled here. Variants of which nothing is are left out.
    """
    known, found = set(), {}
    for label, variant in VARIANTS.items():
        if target in variant.targets:
            chosen = variant.chosen(launched(variant.launch, target), known)
            known |= {launch.configuration for launch in chosen.values()}
            found[label] = set(chosen)
    return {label: chosen for label, chosen in found.items() if chosen}


def _networks():
    """Yield what networks launch, and which of it: every option of each operator with 16 channels, once."""
    for C, size in CELLS:
        image, launches = (BATCH, size, size), "all" if C == 16 else "largest"
        yield f"edge C={C}", Conv(*image, C, C, 1, EDGE, False, True), "largest"
        if C != 32:
            yield f"1x1 {4 * C} to C={C}", Conv(*image, 4 * C, C, 1, (), False, True), launches
        yield f"pool C={C}", Pool(*image, C, 1), launches
        yield f"node C={C}", Mix(*image, C, 14 if C == 16 else 4, False), launches
    image = BATCH, 32, 32
    yield "normalised C=16", Conv(*image, 16, 16, 1, EDGE[1:2], True, True), "all"
    yield "normalised C=144", Conv(*image, 144, 144, 1, EDGE[:1], True, True), "largest"
    yield "dilated C=16 stride 2", Conv(*image, 16, 16, 2, EDGE[3:], False, True), "largest"
    yield "1x1 64 to C=32 stride 2", Conv(*image, 64, 32, 2, (), False, True), "largest"
    yield "pool C=144 stride 2", Pool(*image, 144, 2), "largest"
    yield "node C=144", Mix(*image, 144, 2, True), "all"
    yield "rnn H=300", Node(8, 256, 300), "largest"
    yield "rnn H=304", Node(2, 256, 304), "all"
    yield "rnn step H=300", Step(8, 256, 300), "largest"
    yield "rnn step H=304", Step(2, 256, 304), "all"


def _cells():
    """Yield cells, whose kernels are grouped."""
    for C, size in ((16, 32), (64, 8)):
        yield f"cells C={C}", Variant(Cells(BATCH, size, C, steps=2), launches="largest")
    yield "cells C=16 half", Variant(Cells(BATCH, 32, 16, "store", torch.bfloat16, 2), launches="largest")
    yield "cells C=6", Variant(Cells(2, 10, 6, "recompute", steps=2), launches="largest")
    pools = "max_pool_3x3", "avg_pool_3x3", "skip_connect"
    yield "pools C=16", Variant(Cells(BATCH, 32, 16, steps=2, primitives=pools), launches="new")
    yield "cells C=16", Variant(Cells(BATCH, 32, 16, steps=2), torch.float64, "largest", ("sm_80",))


def _odd():
    """Yield sizes that fill no block, and the operators on parameters."""
    yield "edge C=5", Variant(Conv(2, 7, 9, 5, 5, 1, EDGE[1:2], True, True, "slice"), launches="largest")
    yield "pool C=5", Variant(Pool(2, 7, 9, 5, 1, "slice"))
    yield "node C=5", Variant(Mix(2, 7, 9, 5, 3, True, "slice"))
    pixel = Conv(1, 1, 1, 1, 1, 1, EDGE[:1], True, True)
    yield "one pixel", Variant(pixel, launches="largest", targets=("sm_80",))
    yield "one pixel pool", Variant(Pool(1, 1, 1, 1, 1), launches="largest")
    yield "one pixel node", Variant(Mix(1, 1, 1, 1, 1, True))
    yield "one row rnn", Variant(Node(1, 1, 1), launches="largest")
    yield "one row rnn step", Variant(Step(1, 1, 1), launches="largest")
    yield "alphas", Variant(Alphas(((14, 8), (14, 8))))
    yield "one alpha", Variant(Alphas(((1, 1),)))
    yield "norms C=16", Variant(Norms(4, 16))
    yield "norms C=576", Variant(Norms(2, 576, None))
    yield "norms C=5", Variant(Norms(1, 5))
    yield "one norm", Variant(Norms(1, 1, moved=False))
    yield "parameters", Variant(Vectors(1_930_624))
    yield "one parameter", Variant(Vectors(1))


def _others():
    """Yield what heuristics choose otherwise for; the tests name what is missing (``configurations.py``)."""
    image = BATCH, 32, 32
    for Ci, Co in itertools.product((16, 32, 31, 15, 96), (16, 32, 64)):
        yield f"conv {Ci} to {Co}", Conv(*image, Ci, Co, 1, EDGE[:1], True, True)
    for Ci, Co in ((16, 16), (16, 32), (16, 64), (70, 64)):
        yield f"1x1 {Ci} to {Co}", Conv(*image, Ci, Co, 1, (), True, True)
    for C in (8, 16, 32, 64):
        yield f"pool C={C}", Pool(*image, C, 1)
        yield f"node C={C}", Mix(*image, C, 4, True)
    for B in (32, 64, 128, 256):
        yield f"rnn B={B}", Node(1, B, 304 * 256 // B)
    yield "alphas", Alphas(((14, 8), (14, 8)))
    yield "norms", Norms(4, 16)
    yield "parameters", Vectors(1_930_624)


def _variants():
    networks = {label: case for label, case, _ in _networks()}
    for label, case, launches in _networks():
        yield label, Variant(case, launches=launches)
    yield from _odd()
    yield from _cells()
    yield "normalised C=16 tf32", Variant(networks["normalised C=16"], launches="largest", precision="tf32")
    for label in ("normalised C=16", "pool C=16", "node C=16", "rnn H=304", "rnn step H=304"):
        yield label, Variant(networks[label], torch.float16, "largest")
    yield "edge C=16", Variant(networks["edge C=16"], torch.bfloat16, "largest", ("sm_80",))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for label, case in _others():
            yield f"{label} new", Variant(case, dtype, "new")


VARIANTS = {f"{label} {str(v.dtype).removeprefix('torch.')}": v for label, v in _variants()}
