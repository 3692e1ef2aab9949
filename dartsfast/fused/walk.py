"""Walks a program in Python, one operator after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor

from dartsfast.constants import constant
from dartsfast.fused.forward import Setting, no_norm
from dartsfast.fused.memory import Bytes, last_reads, lifetimes
from dartsfast.fused.program import Instruction, Place, Program, Ref, as_float

kernels = torch.ops.dartsfast


class Walk:
    """Runs a program operator by operator, on any device."""

    works = ()

    def __init__(self, program: Program, setting: Setting) -> None:
        self.program, self._dtype = program, setting.dtype
        self.kept = [k for k, slot in enumerate(program.slots) if slot.place == Place.KEPT]
        self._last = last_reads(program)

    @property
    def memory(self) -> Bytes:
        """The bytes of its slots: a temporary one is a tensor as long as sections use it."""
        program = self.program
        size = [prod(slot.shape) * (slot.dtype or self._dtype).itemsize for slot in program.slots]
        living = [0] * len(program.sections)
        for slot, (first, last) in lifetimes(program).items():
            for k in range(first, last + 1):
                living[k] += size[slot]
        return Bytes(sum(size[slot] for slot in self.kept), max(living, default=0))

    def run(self, given: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run it; return its tensors, and what it keeps for a backward.

        Args:
            given: its given tensors, contiguous.
            kept: what the forward kept.
        """
        memory = _Memory(self.program, self._dtype, given, dict(zip(self.kept, kept, strict=False)))
        for k, section in enumerate(self.program.sections):
            for instruction in section:
                _RUN[instruction.op](memory, instruction)
            for slot in self._last.get(k, ()):
                memory.tensors.pop(slot, None)
        returned = [memory.tensors[slot] for slot in self.program.returned]
        return returned, [] if kept else [memory.tensors[slot] for slot in self.kept]


class _Memory:
    """The tensors of a program's slots."""

    def __init__(
        self, program: Program, dtype: torch.dtype, given: Sequence[Tensor], kept: dict[int, Tensor]
    ) -> None:
        self.slots, self.dtype = program.slots, dtype
        self.tensors = dict(zip(program.given, given, strict=True)) | kept

    def whole(self, ref: Ref) -> bool:
        """Whether ``ref`` is all of its slot."""
        return ref.shape == self.slots[ref.slot].shape

    def __getitem__(self, ref: Ref) -> Tensor:
        t = self.tensors[ref.slot]
        return t if self.whole(ref) else t.as_strided(ref.shape, ref.stride, t.storage_offset() + ref.offset)

    def list(self, refs: Sequence[Ref]) -> list[Tensor]:
        """Return each."""
        return [self[ref] for ref in refs]

    def maybe(self, refs: Sequence[Ref]) -> Tensor | None:
        """Return the one, or None."""
        return self[refs[0]] if refs else None

    def stacked(self, refs: Sequence[Ref]) -> Tensor:
        """Return refs of one shape as [refs, ...]: a view where they lie at even distances."""
        parts, rest = [], list(refs)
        while rest:
            first, count = rest[0], 1
            step = max(rest[1].offset - first.offset, 0) if len(rest) > 1 else 0
            while count < len(rest) and rest[count] == first._replace(offset=first.offset + count * step):
                count += 1
            t = self.tensors[first.slot]
            shape, stride = (count, *first.shape), (step, *first.stride)
            parts.append(t.as_strided(shape, stride, t.storage_offset() + first.offset))
            rest = rest[count:]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def write(self, ref: Ref, value: Tensor) -> None:
        """Set a slot, or copy into a part of one."""
        if self.whole(ref):
            self.tensors[ref.slot] = value
            return
        slot = self.slots[ref.slot]
        if ref.slot not in self.tensors:
            self.tensors[ref.slot] = kernels.empty(value, slot.shape)
        self[ref].copy_(value)

    def write_stacked(self, refs: Sequence[Ref], values: Tensor) -> None:
        """Set what :meth:`stacked` returns."""
        if not refs:
            return
        if self.slots[refs[0].slot].shape == tuple(values.shape):
            self.tensors[refs[0].slot] = values
        else:
            for ref, value in zip(refs, values.unbind(), strict=True):
                self.write(ref, value)


def _branch_conv(m: _Memory, i: Instruction) -> None:
    (x,), norm, depthwise, pointwise = i.reads
    z, stats = i.writes
    stride, relu, *dilation = i.numbers
    found, moments = kernels.branch_conv(
        m[x],
        m.maybe(norm),
        m.list(depthwise),
        m.list(pointwise),
        dilation,
        stride,
        bool(relu),
        m.slots[z[0].slot].dtype,
    )
    for ref, image in zip(z, found.unbind(), strict=True):
        m.write(ref, image)
    m.write_stacked(stats, moments)


def _pooled(m: _Memory, x: Ref, i: Instruction) -> Any:
    # Of an image in 16 bits the operator would store z so, too.
    return kernels.pool3x3(m[x].to(m.dtype), i.numbers[0])


def _pool3x3(m: _Memory, i: Instruction) -> None:
    z, stats = i.writes
    found, moments = _pooled(m, i.reads[0][0], i)
    for ref, image in zip(z, found.unbind(), strict=True):
        m.write(ref, image)
    m.write_stacked(stats, moments)


def _norm_stats(m: _Memory, i: Instruction) -> None:
    mean, variance = i.reads
    norm, *moved = i.writes
    pixels, share, eps = i.numbers
    momentum = as_float(share)
    pairs = [ref for pair in zip(mean, variance, strict=True) for ref in pair]
    stats = m.stacked(pairs).unflatten(0, (-1, 2))
    found = kernels.norm_stats_(
        stats,
        *(m.list(refs) for refs in moved),
        None if momentum != momentum else momentum,
        as_float(eps),
        pixels,
    )
    m.write_stacked(norm, found)


def _by_edge(counts: Sequence[int], *arguments: Sequence[Ref]) -> Iterator[list[list[Ref]]]:
    """Cut arguments of one entry a branch into those of every edge."""
    iterators = [iter(refs) for refs in arguments]
    for count in counts:
        yield [list(islice(refs, count)) for refs in iterators]


def _mixed_sum(m: _Memory, i: Instruction) -> None:
    z, norm, weights, base = i.reads
    out: Any = m.maybe(base)
    for images, norms, rows in _by_edge(i.numbers, z, norm, weights):
        mean, rstd = m.stacked(norms).unbind(1)
        out = kernels.mixed_sum(m.list(images), mean, rstd, m.stacked(rows), out)
    m.write(i.writes[0][0], out)


def _mixed_sum_backward(m: _Memory, i: Instruction) -> None:
    (g,), z, norm = i.reads
    d_weights, g_mean, g_zhat_mean = i.writes
    found: list[Tensor] = []
    means: list[Tensor] = []
    for images, norms in _by_edge(i.numbers, z, norm):
        mean, rstd = m.stacked(norms).unbind(1)
        d, both = kernels.mixed_sum_backward(m[g], m.list(images), mean, rstd)
        found.append(d)
        means.append(both if not means else both[1:])
    m.write_stacked([*g_mean, *g_zhat_mean], torch.cat(means) if len(means) > 1 else means[0])
    d = torch.cat(found) if len(found) > 1 else found[0]
    slot = d_weights[0].slot
    if m.slots[slot].place == Place.RETURNED:
        m.tensors[slot].view(-1)[places(tuple(ref.offset for ref in d_weights), d.device)] = d


def _norm_stats_backward(m: _Memory, i: Instruction) -> None:
    g_mean, g_zhat_mean, norm, weights = i.reads
    stats = m.stacked(norm)
    own = batch_norms(tuple(map(bool, i.numbers)), stats.dtype, stats.device)
    coef = kernels.norm_stats_backward(
        m.stacked(g_mean), m.stacked(g_zhat_mean), stats, m.stacked(weights) if weights else None, own
    )
    m.write_stacked(i.writes[0], coef)


def _branch_conv_backward(m: _Memory, i: Instruction) -> None:
    g, z, coef, (x,), norm, depthwise, pointwise, base, onto = i.reads
    dx, d_depthwise, d_pointwise, means = i.writes
    stride, relu, *dilation = i.numbers
    found, by_taps, by_points, both = kernels.branch_conv_backward(
        m.list(g), m.list(z), m.stacked(coef), m[x], m.maybe(norm), m.list(depthwise), m.list(pointwise),
        dilation, stride, bool(relu), m.maybe(base), bool(dx), bool(d_pointwise),
    )  # fmt: skip
    for ref, gradient in zip((*d_depthwise, *d_pointwise), (*by_taps, *by_points), strict=True):
        m.write(ref, gradient)
    m.write_stacked(means, both)
    if dx and onto == dx:
        m[dx[0]].add_(found)
    elif dx:
        m.write(dx[0], found.add_(m[onto[0]]) if onto else found)


def _pool3x3_backward(m: _Memory, i: Instruction) -> None:
    (g,), z, coef, (x,), base, skip = i.reads
    saved = m.list(z) or list(_pooled(m, x, i)[0])
    below: Any = m.maybe(base)
    for weight in m.list(skip):
        mean, rstd = no_norm(g.shape[-1], m.dtype, m[g].device)[:, None]
        below = kernels.mixed_sum([m[g]], mean, rstd, weight[None], below)
    dx = kernels.pool3x3_backward([m[g], m[g]], saved, m.stacked(coef), m[x], i.numbers[0], below)
    m.write(i.writes[0][0], dx)


def _add(m: _Memory, i: Instruction) -> None:
    (a,), (b,) = i.reads
    m.write(i.writes[0][0], m[a].add_(m[b]) if i.writes[0][0] == a else m[a] + m[b])


def _zero(m: _Memory, i: Instruction) -> None:
    (out,) = i.writes[0]
    like = next(iter(m.tensors.values()))
    m.write(out, like.new_zeros(out.shape, dtype=m.dtype))


def _copy(m: _Memory, i: Instruction) -> None:
    (x,), (out,) = i.reads[0], i.writes[0]
    dtype = m.slots[out.slot].dtype
    if dtype is not None:
        m.write(out, m[x].to(dtype))
    else:
        m.write(out, kernels.empty(m[x], out.shape).copy_(m[x]))


def _concatenate(m: _Memory, i: Instruction) -> None:
    images, (out,) = m.list(i.reads[0]), i.writes[0]
    m.write(out, torch.cat(images, -1, out=kernels.empty(images[0], out.shape)))


_RUN: dict[str, Callable[[_Memory, Instruction], Any]] = {
    "branch_conv": _branch_conv,
    "pool3x3": _pool3x3,
    "norm_stats": _norm_stats,
    "mixed_sum": _mixed_sum,
    "mixed_sum_backward": _mixed_sum_backward,
    "norm_stats_backward": _norm_stats_backward,
    "branch_conv_backward": _branch_conv_backward,
    "pool3x3_backward": _pool3x3_backward,
    "add": _add,
    "zero": _zero,
    "copy": _copy,
    "concatenate": _concatenate,
}


@constant
def places(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """Return ``offsets`` as a tensor: made once, so that no iteration copies to a device."""
    return torch.tensor(offsets, device=device)


@constant
def batch_norms(own: tuple[bool, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [norms], 1 where a norm is the batch's own."""
    return torch.tensor(own, dtype=dtype, device=device)
