"""Many tensors as one vector, so that what is done to all weights is one pass over memory.

:func:`flatten_` puts the memory of parameters side by side in one buffer. They stay the tensors that
they are, each with a storage of its own that ends where the tensor ends: optimisers, ``state_dict``,
saving, pickling, copying and DDP see no difference. Tensors that do not lie in such a buffer are
gathered into a vector and scattered back: the same results for a few more copies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from dartsfast import ranks
from dartsfast.bilevel.guard import preserved
from dartsfast.errors import InputError
from dartsfast.ops import fd_norm

LINE = 64  # bytes: a cache line, and more than vector loads of any device ask for

# The buffer that a tensor was moved to, which it may have left since, by .to() for instance.
_homes = WeakIdKeyDictionary()


class Flat:
    """Tensors as vectors, one a device and precision: float64, or float32 for any smaller type.

    Attributes:
        tensors: the tensors.
        groups: those of one device and precision, in the order in which vectors stand for them.

    Raises:
        InputError: no tensors, or one that is not dense, or not of real numbers.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            raise InputError("there must be at least one tensor")
        self.tensors = tensors
        kinds = [_kind(t) for t in tensors]
        self._indices = [[i for i, k in enumerate(kinds) if k == kind] for kind in dict.fromkeys(kinds)]
        self.groups = [Group([tensors[i] for i in indices]) for indices in self._indices]

    def gather(self, values: Sequence[Tensor | None]) -> list[Tensor]:
        """Return new vectors of ``values``, one a tensor; None counts as 0."""
        pairs = zip(self.groups, self._indices, strict=True)
        return [group.gather([values[i] for i in indices]) for group, indices in pairs]

    def vectors(self) -> list[Tensor]:
        """Return the tensors' values: their own memory, or a copy that :meth:`scatter` writes back."""
        return [g.gather(g.members) if g.buffer is None else g.buffer for g in self.groups]

    def scatter(self, vectors: Sequence[Tensor]) -> None:
        """Give the tensors the values of ``vectors``."""
        for group, vector in zip(self.groups, vectors, strict=True):
            group.scatter(vector)

    def split(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the parts of ``vectors`` in the tensors' order, shapes and memory layouts."""
        parts = zip(self.groups, vectors, strict=True)
        views = itertools.chain.from_iterable(group.views(vector) for group, vector in parts)
        indices = itertools.chain.from_iterable(self._indices)
        return [view for _, view in sorted(zip(indices, views, strict=True), key=lambda pair: pair[0])]

    @contextmanager
    def preserved(self) -> Iterator[list[Tensor]]:
        """Restore the tensors on the way out (see :func:`~dartsfast.bilevel.guard.preserved`).

        Yields vectors of the values that will be restored.
        """
        memory = [g.members if g.buffer is None else [g.buffer] for g in self.groups]
        with preserved([*itertools.chain.from_iterable(memory)]) as saved:
            rest = iter(saved)
            yield [
                g.gather([next(rest) for _ in g.members]) if g.buffer is None else next(rest)
                for g in self.groups
            ]


class Group:
    """Tensors of one device and precision.

    Attributes:
        members: the tensors.
        places: where each begins in the vector, on cache lines; what lies between them is 0.
        size: elements of the vector.
        buffer: the vector in whose memory the members lie, or None.
    """

    def __init__(self, members: list[Tensor]) -> None:
        self.members = members
        self.device, self.dtype = _kind(members[0])
        line = LINE // self.dtype.itemsize
        lines = [-(-m.numel() // line) for m in members]
        *self.places, size = (line * n for n in itertools.accumulate(lines, initial=0))
        self.size = max(size, line)
        self._strides = [_dense_strides(m) for m in members]
        self.buffer = self._find_buffer()

    def _find_buffer(self) -> Tensor | None:
        buffer = _homes.get(self.members[0])
        if buffer is None or len(buffer) != self.size or _kind(buffer) != (self.device, self.dtype):
            return None
        start, itemsize = buffer.data_ptr(), buffer.itemsize
        for m, place, strides in zip(self.members, self.places, self._strides, strict=True):
            there = m.data_ptr() == start + place * itemsize or m.numel() == 0
            if not there or m.dtype != self.dtype or m.stride() != strides:
                return None
        return buffer

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of ``vector`` in the members' shapes and memory layouts."""
        layout = zip(self.members, self._strides, self.places, strict=True)
        return [vector.as_strided(m.shape, strides, place) for m, strides, place in layout]

    def gather(self, values: Sequence[Tensor | None]) -> Tensor:
        """Return a new vector of ``values``, one a member; None counts as 0."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        vector = torch.ops.dartsfast.empty(like, [self.size]).zero_()
        pairs = zip(self.views(vector), values, strict=True)
        there = [(view, value.detach()) for view, value in pairs if value is not None]
        if there:
            torch._foreach_copy_([view for view, _ in there], [_strided(value) for _, value in there])
        return vector

    def scatter(self, vector: Tensor) -> None:
        """Give the members the values of ``vector``."""
        if vector is not self.buffer:
            with torch.no_grad():
                torch._foreach_copy_(self.members, self.views(vector))


def norm(vectors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all ``vectors`` together, []."""
    first, *others = map(fd_norm, vectors)
    return torch.linalg.vector_norm(torch.stack([first, *(n.to(first) for n in others)])) if others else first


def averaged(
    tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], average: ranks.Average | None
) -> list[Tensor | None]:
    """Return ``gradients``, one a tensor, as ``average`` makes others of vectors; None stays None."""
    if average is None:
        return list(gradients)
    flat = Flat(tensors)
    means = flat.split(average(flat.gather(gradients)))
    return [None if g is None else mean.to(g.dtype) for g, mean in zip(gradients, means, strict=True)]


def average_over_ranks_(tensors: Sequence[Tensor]) -> None:
    """Give ``tensors`` the means of their values over all ranks, the same bits on each."""
    if tensors and ranks.size() > 1:
        flat = Flat(tensors)
        flat.scatter(ranks.average(flat.vectors()))


def average_gradients_(parameters: Iterable[Tensor]) -> None:
    """Give the gradients of ``parameters``, where there are any, their means over all ranks."""
    average_over_ranks_([p.grad for p in parameters if p.grad is not None])


@torch.inference_mode(False)  # whose tensors could not be trained any more
@torch.no_grad()
def flatten_(tensors: Sequence[Tensor]) -> None:
    """Move the memory of ``tensors`` together, into one buffer a device and dtype, where it allows.

    To be called before every use: it moves what has left its buffer since, and does nothing else. A
    device and dtype is left as it is if one of its tensors is neither float32 nor float64, not dense,
    or in memory that something else looks at (a view, another parameter, an array, another process).
    A captured CUDA graph reads the addresses of its capture: flatten before.
    """
    for group in Flat(tensors).groups:
        if group.buffer is not None or not all(_may_move(m, group.dtype) for m in group.members):
            continue
        buffer = group.gather(group.members)
        for member, place, view in zip(group.members, group.places, group.views(buffer), strict=True):
            _homes[member] = buffer
            if member.numel():
                # Through DLPack, for a storage of the tensor's own; it forgets strides of single elements.
                own = torch.from_dlpack(buffer[place : place + member.numel()])
                member.data = own.as_strided(view.shape, view.stride())


def _may_move(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether nobody would notice that ``tensor`` has its memory elsewhere."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type not in ("cpu", "cuda"):
        return False
    storage = tensor.untyped_storage()
    # Memory that cannot be resized is not torch's: an array's, a file's, or that of one of our buffers.
    unshared = storage.resizable() or _is_home(tensor)
    if tensor.device.type == "cpu":
        unshared = unshared and not storage.is_shared()
    users = torch._C._storage_Use_Count(storage._cdata)  # the tensor and ``storage`` itself
    whole = storage.nbytes() == tensor.numel() * tensor.itemsize
    return tensor.is_leaf and tensor.dtype == dtype and unshared and whole and users == 2


def _is_home(tensor: Tensor) -> bool:
    home = _homes.get(tensor)
    return home is not None and 0 <= tensor.data_ptr() - home.data_ptr() < home.nbytes


def _kind(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return the device and the dtype of the vector that ``tensor`` belongs to."""
    if tensor.layout is not torch.strided or not tensor.is_floating_point():
        raise InputError(
            f"tensors must be dense and of floating-point numbers, got {tensor.dtype}, {tensor.layout}"
        )
    return tensor.device, torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of ``tensor`` if it is dense, in whatever order, else some that are."""
    return (tensor if tensor.is_contiguous() else torch.empty_like(tensor, device="meta")).stride()


def _strided(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()
