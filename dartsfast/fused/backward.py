"""The backward of a cell as a program, for a set of gradients.

Nodes from the last to the first. What arrives at a state is added in this order: the gradient of its part
of the result, then that of every edge that reads it, nodes from the last to the first. An edge's own gradient
is complete before: skips, pools, convolutions, factorized reductions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from dartsfast.constants import constant
from dartsfast.fused.arrivals import Arrivals
from dartsfast.fused.build import Builder, Placed, by_part, halves, shuffle
from dartsfast.fused.forward import NATIVE, Forward, no_norm
from dartsfast.fused.program import (
    Instruction,
    Place,
    Program,
    Ref,
    branch_conv_backward,
    copy,
    mixed_sum,
    mixed_sum_backward,
    norm_stats_backward,
    pool3x3_backward,
    zero,
)

Phases = list[list[Instruction]]
_MANY_IMAGES = 16


class Backward:
    """The program of the gradients of a forward's given tensors.

    It is given what the forward was, the forward's result where states are a part of that, the gradient of
    the result, and constants; it returns gradients of some of the first ``differentiable`` tensors.

    Args:
        forward: the forward.
        needed: whether a gradient is asked for, of each of these tensors.

    Attributes:
        returned: which of these tensors the returned gradients belong to, by number.
    """

    def __init__(self, forward: Forward, needed: Sequence[bool]) -> None:
        self.forward = forward
        made = forward.builder
        slots, given = list(made.program.slots), list(made.program.given)
        tensors = list(made.tensors)
        (out,) = made.program.returned
        if forward.keeps_result:
            slots[out] = slots[out]._replace(place=Place.GIVEN)
            given.append(out)
            tensors.append(None)
        self.program = Program(slots, [], given)
        self.builder = Builder(self.program, tensors, forward.setting.storage)
        self.returned: list[int] = []
        self._gradients: dict[int, int] = {}
        self.needed = {slot for slot, need in zip(self.program.given, needed, strict=False) if need}
        g = self.builder.given(None, slots[out].shape)
        self._reach_states()
        self.arrivals = Arrivals(self.program, forward.states, self._returned)
        section = self._share_out(g)
        if forward.weights.slot in self.needed:
            section.append(zero(self.gradient(forward.weights)))
        self.program.section(section)
        self._states()
        inputs = len(forward.setting.inputs)
        for first, last in reversed(forward.apart):
            nodes = []
            for k in reversed(range(first, last)):
                g_node = self.arrivals.at(inputs + k)
                if g_node is not None and self.reached[inputs + k]:
                    nodes += self._parts(k, g_node)
            self._nodes(nodes)
        self.program.prune()

    def _reach_states(self) -> None:
        """Find the states that something depends on whose gradient is asked for."""
        forward = self.forward
        count = len(forward.setting.inputs)
        self.reached = [state.slot in self.needed for state in forward.states[:count]]
        for node in forward.placed:
            mixing = any(placed.row is not None for placed in node) and forward.weights.slot in self.needed
            self.reached.append(mixing or any(self._edge_reached(placed) for placed in node))

    def _edge_reached(self, placed: Placed) -> bool:
        extras = any(extra.slot in self.needed for extra in placed.extras)
        return self.reached[placed.source] or extras or self.weights_needed(placed)

    def weights_needed(self, placed: Placed) -> bool:
        """Whether the gradient of a weight of an edge is asked for."""
        return any(self.builder.given(w).slot in self.needed for w in placed.edge.tensors())

    def _share_out(self, g: Ref) -> list[Instruction]:
        """Give every node of the result its part of the gradient.

        Return what makes a dense image of one that no edge reads, where kernels do not take it as it lies.
        """
        forward, start, section = self.forward, 0, list[Instruction]()
        returned, lies = forward.returned, forward.setting.runner == "triton"
        for k in range(len(forward.states) - returned, len(forward.states)):
            C = forward.states[k].shape[-1]
            part = g if returned == 1 else g.channels(start, start + C)
            start += C
            if returned > 1 and k not in forward.read and not lies:
                dense = self.program.new(part.shape, Place.TEMPORARY)
                section.append(copy(part, dense))
                part = dense
            self.arrivals.begin(k, part)
        return section

    def gradient(self, of: Ref) -> Ref:
        """Return the slot of the gradient of a given tensor."""
        if of.slot not in self._gradients:
            self._gradients[of.slot] = self.program.new(
                self.program.slots[of.slot].shape, Place.RETURNED
            ).slot
            self.returned.append(self.program.given.index(of.slot))
        return of._replace(slot=self._gradients[of.slot])

    def _returned(self, of: Ref) -> Ref | None:
        return self.gradient(of) if of.slot in self.needed else None

    def _parts(self, k: int, g: Ref) -> list[tuple[Ref, list[Placed]]]:
        """Return the gradients of the parts of a node's channels."""
        forward = self.forward
        parts = by_part(forward.placed[k])
        if len(parts) == 1:
            return [(g, parts[0])]
        *NHW, C = g.shape
        first = C // forward.groups[k]
        images = [self.program.new((*NHW, c), Place.TEMPORARY) for c in (first, C - first)]
        self.program.section(shuffle(images, g, forward.groups[k], back=True))
        return list(zip(images, parts, strict=True))

    def _nodes(self, nodes: list[tuple[Ref, list[Placed]]]) -> None:
        """Add nodes that do not depend on each other."""
        together = self.forward.setting.memory == "store"
        for groups in [nodes] if together else [[(g, [placed])] for g, node in nodes for placed in node]:
            self._compute([placed for _, group in groups for placed in group], together)
            coefs = self._sums(groups)
            edges = [(placed, g) for g, group in groups for placed in group]
            phases = [
                _Edge(self, placed, g, coef).phases() for (placed, g), coef in zip(edges, coefs, strict=True)
            ]
            for alike in [phases] if self._edges_together() else [[edge] for edge in phases]:
                for section in zip_longest(*alike, fillvalue=[]):
                    self.program.section([instruction for part in section for instruction in part])

    def _edges_together(self) -> bool:
        """Whether a node's edges share sections: for few launches, or so that all threads have work.

        On CPUs many images give enough of it edge by edge, and less to keep.
        """
        setting = self.forward.setting
        return setting.runner != "cpu" or setting.inputs[0][0] < _MANY_IMAGES

    def _compute(self, group: list[Placed], together: bool) -> None:
        """Add what was not kept: pools, and everything of an edge where edges are computed again."""
        builder, states = self.builder, self.forward.stored
        section = [i for p in group for i in builder.pools(p, p.reads(states), shared=together)]
        if not together:
            section += [i for p in group for i in builder.first_stages(p, p.reads(states), Place.TEMPORARY)]
        self.program.section(section)
        if not together:
            self.program.section([i for p in group for i in builder.second_stages(p, Place.TEMPORARY)])

    def _states(self) -> None:
        """Add the states that edges read and that nothing kept."""
        forward, sources = self.forward, self.forward.stored
        for k, node in enumerate(forward.placed, len(forward.setting.inputs)):
            out, base = sources[k], None
            if k not in forward.read or self.program.slots[out.slot].place != Place.TEMPORARY:
                continue
            for placed in node:
                self._compute([placed], together=False)
                images, count = placed.summed(sources), len(placed.edge.ops)
                self.program.section([mixed_sum(images, placed.final, placed.weights, base, out, [count])])
                base = out

    def _sums(self, groups: list[tuple[Ref, list[Placed]]]) -> list[list[Ref]]:
        """Add the gradients of nodes' mixing weights; return coef [4, C] of every operation, by edge."""
        sums, norms, found = [], [], []
        for g, group in groups:
            images = [image for p in group for image in p.summed(self.forward.stored)]
            finals = [norm for p in group for norm in p.final]
            d_weights = [d for p in group for d in self._mixing_gradients(p)]
            means = self.program.new((1 + len(images), g.shape[-1]), Place.TEMPORARY).rows()
            counts = [len(p.edge.ops) for p in group]
            sums.append(mixed_sum_backward(g, images, finals, d_weights, means[0], means[1:], counts))
            start = 1
            for p, count in zip(group, counts, strict=True):
                coef = self.program.new((count, 4, g.shape[-1]), Place.TEMPORARY).rows()
                mine = means[start : start + count]
                both = [means[0]] * count, mine
                norms.append(norm_stats_backward(*both, p.final, p.weights, p.own_final, coef))
                found.append(list(coef))
                start += count
        self.program.section(sums)
        self.program.section(norms)
        return found

    def _mixing_gradients(self, placed: Placed) -> list[Ref]:
        weights = self.forward.weights
        if placed.row is None or weights.slot not in self.needed:
            return list(self.program.new((len(placed.edge.ops),), Place.TEMPORARY).rows())
        row = self.gradient(weights).row(placed.row)
        return [row.row(op) for op in placed.edge.ops]


class _Edge:
    """What an edge adds to the program once the gradient g of its node is there, phase by phase."""

    def __init__(self, backward: Backward, placed: Placed, g: Ref, coef: list[Ref]) -> None:
        self.backward, self.placed, self.edge, self.g, self.coef = backward, placed, placed.edge, g, coef
        self.builder, self.program = backward.builder, backward.program
        self.x = placed.reads(backward.forward.stored)
        self.input_grad = backward.reached[placed.source]
        self.weight_grads = backward.weights_needed(placed)
        self.dx: Ref | None = None  # what there is until now of this edge's gradient of x

    def phases(self) -> Phases:
        """Return the instructions, those of a phase independent of each other and of other edges'."""
        found: Phases = [self._extras()]
        if self.input_grad:
            found += [*self._skips(), self._pools()]
        if self.edge.first and (self.input_grad or self.weight_grads):
            gs, coef = self._second_stages(found)
            found.append(self._first_stages(gs, coef))
        if self.input_grad or self.weight_grads:
            found += self._reduces()
        if self.dx is not None:
            found.append(self.backward.arrivals.add(self.placed, self.dx))
        return found

    def _temporary(self, like: Ref) -> Ref:
        return self.program.new(like.shape, Place.TEMPORARY)

    def _last(self) -> Ref:
        """Return a place for the last dx; where it is a state's first gradient, the state's own."""
        arrivals = self.backward.arrivals
        alone = arrivals.before(self.placed) is None
        return arrivals.next(self.placed)[1] if alone else self._temporary(self.x)

    def _scaled(self, weight: Ref, base: Ref | None, out: Ref) -> Instruction:
        """Return out = base + weight * g."""
        setting = self.backward.forward.setting
        norm = self.builder.given(no_norm(self.g.shape[-1], setting.dtype, setting.device))
        return mixed_sum([self.g], [norm], [weight], base, out, [1])

    def _extras(self) -> list[Instruction]:
        extras = self.placed.extras
        weights = self.placed.weights[len(self.placed.weights) - len(extras) :]
        return [
            self._scaled(weight, None, self.backward.gradient(extra))
            for extra, weight in zip(extras, weights, strict=True)
            if extra.slot in self.backward.needed
        ]

    @property
    def _skip_with_pools(self) -> bool:
        """Whether the kernel of pools, which reads g, makes the gradient of the skip too."""
        native = self.backward.forward.setting.runner in NATIVE
        return native and bool(self.edge.pools) and self.edge.skips == 1

    def _skip_weights(self) -> list[Ref]:
        start = len(self.placed.weights) - len(self.placed.extras) - self.edge.skips
        return self.placed.weights[start : start + self.edge.skips]

    def _skips(self) -> Phases:
        found: Phases = []
        for weight in [] if self._skip_with_pools else self._skip_weights():
            base, self.dx = self.dx, self._temporary(self.x)
            found.append([self._scaled(weight, base, self.dx)])
        return found

    def _pools(self) -> list[Instruction]:
        if not self.edge.pools:
            return []
        start, setting = len(self.edge.first), self.backward.forward.setting
        both = [self.builder.given(no_coef(self.x.shape[-1], setting.dtype, setting.device))] * 2
        for i, (half, _) in enumerate(self.edge.pools):
            both[half] = self.coef[start + i]
        base, self.dx = self.dx, self._temporary(self.x)
        z = [] if setting.runner in NATIVE else self.placed.pooled
        skip = self._skip_weights()[0] if self._skip_with_pools else None
        there = [half for half, _ in self.edge.pools]
        return [pool3x3_backward(self.g, z, both, there, self.x, self.edge.stride, base, self.dx, skip)]

    def _gradients(self, refs: Sequence[Ref]) -> list[Ref]:
        """Return the slots of weights' gradients; what is not asked for is written nowhere."""
        if not self.weight_grads:
            return []
        asked = self.backward.needed
        return [self.backward.gradient(w) if w.slot in asked else self._temporary(w) for w in refs]

    def _second_stages(self, found: Phases) -> tuple[list[Ref], list[Ref]]:
        """Add the backward of second stages; return the gradients of first stages, and their coef [4, C]."""
        placed, separable = self.placed, self.edge.separable
        gs: list[Ref] = []
        means: list[list[Ref]] = []
        for b, (_, stage) in enumerate(separable):
            depthwise, pointwise, dilation = self.builder.weights([stage], placed.first[b].shape[-1])
            gs.append(self._temporary(placed.first[b]))
            means.append(list(self.program.new((2, gs[b].shape[-1]), Place.TEMPORARY).rows()))
            instruction = branch_conv_backward(
                [self.g], [placed.second[b]], [self.coef[b]], placed.first[b], placed.inner[b],
                depthwise, pointwise, dilation, 1, True, None, None,
                gs[b], self._gradients(depthwise), self._gradients(pointwise), means[b],
            )  # fmt: skip
            found[0].append(instruction)
        coef = self.coef[len(separable) : len(self.edge.first)]
        if separable:
            inner = self.program.new((len(separable), 4, gs[0].shape[-1]), Place.TEMPORARY).rows()
            g_mean, g_zhat_mean = ([m[half] for m in means] for half in range(2))
            norms = norm_stats_backward(g_mean, g_zhat_mean, placed.inner, [], placed.own_inner, inner)
            found.extend([] for _ in range(2 - len(found)))
            found[1].append(norms)
            coef = [*inner, *coef]
        return gs + [self.g] * len(self.edge.single), coef

    def _first_stages(self, gs: list[Ref], coef: list[Ref]) -> list[Instruction]:
        depthwise, pointwise, dilation = self.builder.weights(self.edge.first, self.x.shape[-1])
        onto, base = None, self.dx
        dx = None
        if (
            self.input_grad and not self.edge.reduces
        ):  # nothing comes after it: it arrives at the state at once
            onto, dx = self.backward.arrivals.next(self.placed)
            self.dx = None
        elif self.input_grad:
            dx = self.dx = self._last()
        return [
            branch_conv_backward(
                gs, self.placed.first, coef, self.x, None, depthwise, pointwise, dilation, self.edge.stride,
                self.edge.relu, base if self.input_grad else None, onto,
                dx, self._gradients(depthwise), self._gradients(pointwise), [],
            )
        ]  # fmt: skip

    def _reduces(self) -> Phases:
        """Return the backward of factorized reductions, every half on top of what is there.

        A half touches a quarter of the pixels. Only the first, with no convolution before it, fills dx.
        """
        found: Phases = []
        filled = bool(self.edge.first)
        start = len(self.edge.first) + len(self.edge.pools)
        for k, reduce in enumerate(self.edge.reduces):
            z, coef = self.placed.reduced[k], self.coef[start + k]
            for i, (view, weight, part) in enumerate(halves(self.x, reduce.weights)):
                w = self.builder.points(weight, self.x.shape[-1])
                base = onto = dx = None
                if self.input_grad and not filled:
                    base, self.dx = self.dx, self._last()
                    dx, filled = self.dx, True
                elif self.input_grad and self.dx is not None:
                    onto = dx = self.dx if i == 0 else self.dx.shifted()
                found.append([
                    branch_conv_backward(
                        [self.g.channels(*part)], [z.channels(*part)], [coef.channels(*part)], view, None,
                        [], [w], [], 2, True, base, onto, dx, [], self._gradients([w]), [],
                    )
                ])  # fmt: skip
        return found


@constant
def no_coef(C: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return coef [4, C] that makes every gradient zero."""
    return torch.zeros(4, C, dtype=dtype, device=device)
