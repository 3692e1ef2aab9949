"""Programs ready to run, and the autograd node that runs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from dartsfast.caches import Cache
from dartsfast.fused import check
from dartsfast.fused.backward import Backward
from dartsfast.fused.edge import Edge
from dartsfast.fused.encode import Native
from dartsfast.fused.forward import NATIVE, Forward, Node, Setting
from dartsfast.fused.planning import Planned, Runner
from dartsfast.fused.program import Program
from dartsfast.fused.walk import Walk
from dartsfast.ops.contract import Function, nothing_to_record, once_differentiable

_MOST_BACKWARDS = 16  # a search asks for three sets of gradients


class Prepared:
    """A forward, and a backward for every set of gradients that was asked for.

    Args:
        nodes: as :class:`Forward` takes them.
        returned: how many of them are the result.
        setting: what it is built for.

    Raises:
        InputError: shapes that do not fit, or batch norm over one value.
    """

    def __init__(self, nodes: Sequence[Node], returned: int, setting: Setting) -> None:
        self.forward = Forward(nodes, returned, setting)
        if setting.runner == "triton" and setting.device.type != "meta":
            check.require(setting.device, _edge)
        self.runner = self._runner(self.forward.builder.program)
        self._backwards: Cache[tuple[Backward, Runner | Planned]] = Cache(_MOST_BACKWARDS)

    def __call__(
        self,
        inputs: Sequence[Tensor],
        weights: Tensor,
        extras: Iterable[Tensor] = (),
        stored: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return the result [N, H, W, C].

        Args:
            inputs: images [N, H, W, C].
            weights: mixing weights [edges, ops].
            extras: what ordinary modules gave, edge by edge.
            stored: the inputs as they are kept for the backward, where that is in another dtype.
        """
        forward, dtype = self.forward, self.forward.setting.dtype
        each = iter((*inputs[::-1], weights, *extras))
        given = forward.builder.tensors[: forward.differentiable]
        # Under autocast some come in half precision; the kernels have float32 and float64.
        tensors = [next(each) if t is None else t for t in given]
        return _Run.apply(self, stored[::-1], *(t if t.dtype == dtype else t.to(dtype) for t in tensors))

    def backward(self, needed: tuple[bool, ...]) -> tuple[Backward, Runner | Planned]:
        """Return the backward that gives the gradients that are ``needed``, and what runs it.

        It is built for all threads, one at a time: it writes into the edges of the forward.
        """
        return self._backwards.get(needed, lambda: self._built(needed))

    def _built(self, needed: tuple[bool, ...]) -> tuple[Backward, Runner | Planned]:
        found = Backward(self.forward, needed)
        return found, self._runner(found.program)

    def _runner(self, program: Program) -> Runner | Planned:
        setting = self.forward.setting
        found: Runner
        if setting.runner in NATIVE:
            found = Native(program, setting)
        elif setting.runner == "triton":
            from dartsfast.fused.grouped import Grouped  # needs Triton

            found = Grouped(program, setting)
        else:
            found = Walk(program, setting)
        return found if setting.part is None else setting.part.planned(found, setting.dtype)


def _edge(edge: Edge, x: Tensor, weights: Tensor) -> Tensor:
    """Return what an edge makes of x [N, H, W, C]."""
    shapes = (tuple(x.shape),), tuple(weights.shape)
    setting = Setting(*shapes, x.dtype, x.device, "store", None, backward=True)
    return Prepared([Node([(0, edge, 0)])], 1, setting)([x], weights)


class _Run(Function):
    """A program, as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, prepared: Prepared, stored: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        builder = prepared.forward.builder
        stored = [image.contiguous() for image in stored]
        each = iter(stored)
        rest = [next(each) if t is None else t for t in builder.tensors[len(tensors) :]]
        given = [t if t.is_contiguous() else t.contiguous() for t in tensors]
        with nothing_to_record():
            (out,), kept = prepared.runner.run([*given, *rest], ())
        if stored:
            given[: len(stored)] = stored
        result = [out] if prepared.forward.keeps_result else []  # of which states are a part
        ctx.save_for_backward(*given, *result, *kept)
        ctx.prepared, ctx.rest = prepared, rest[len(stored) :]
        ctx.stored, ctx.given = len(stored), (len(given), len(given) + len(result))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[2:]
        backward, runner = ctx.prepared.backward(needed)
        saved, (count, end) = ctx.saved_tensors, ctx.given
        given = [*saved[:count], *saved[: ctx.stored], *ctx.rest, *saved[count:end], g.contiguous()]
        constants = backward.builder.tensors[len(given) :]
        with nothing_to_record():
            found, _ = runner.run([*given, *constants], saved[end:])
        gradients: list[Tensor | None] = [None] * count
        for number, gradient in zip(backward.returned, found, strict=True):
            gradients[number] = gradient
        return None, None, *gradients
