"""Several processes that compute one run together.

Each is a rank of a ``torch.distributed`` process group, with its part of every batch, and all of them hold
the same network to the bit. Without a group this process is rank 0 of 1, and nothing is sent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dartsfast.errors import CheckFailedError, InputError, LostRankError

T = TypeVar("T")
Average = Callable[[Sequence[Tensor]], list[Tensor]]

# A rank that ends is noticed at once; this is for one that hangs. Kernels that are compiled take minutes.
TIMEOUT = timedelta(minutes=10)


def size() -> int:
    """Return how many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def first() -> bool:
    """Say whether this is the rank that shows and writes."""
    return rank() == 0


def launched() -> bool:
    """Say whether torchrun, or what sets its variables, has started this process as one of several."""
    named = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return named and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within, the processes that torchrun has started together are ranks: NCCL's on GPUs, else gloo's.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; each rank takes the GPU of its ``LOCAL_RANK``.

    Raises:
        InputError: one GPU for all ranks, or fewer GPUs than ranks.
    """
    if not launched():
        yield
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        if device not in ("auto", "cuda"):
            raise InputError(f"--device {device} would be that of all ranks: leave it out")
        if local >= torch.cuda.device_count():
            raise InputError(
                f"there are {torch.cuda.device_count()} GPUs and no {local + 1}: start as many processes, or "
                "use --device cpu"
            )
        torch.cuda.set_device(local)
    # Small things, such as who asks to stop, go over gloo in any case.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def averaging() -> Average | None:
    """Return :func:`average` where there are several ranks, else None."""
    return average if size() > 1 else None


def average(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return the means of ``vectors`` over all ranks, of their shapes and dtypes.

    Every rank adds up one part of a vector, rank 0's values first, then rank 1's and so on, and sends the
    others what it has found. So a sum is made once and copied: all ranks have the same bits by construction,
    whatever the library's algorithm, and two runs of as many ranks have the same. It sends as little as a
    ring does: twice the vector.

    Raises:
        LostRankError: another rank has ended.
    """
    return [_average(vector) for vector in vectors] if size() > 1 else list(vectors)


def _average(vector: Tensor) -> Tensor:
    ranks = size()
    part = -(-vector.numel() // ranks)
    mine = vector.new_zeros(ranks * part)
    mine[: vector.numel()] = vector.reshape(-1)
    mean = ordered_sum(exchanged(mine.view(ranks, part))) / ranks
    means = exchanged(mean.expand(ranks, part))
    return means.flatten()[: vector.numel()].view(vector.shape)


def ordered_sum(every: Tensor) -> Tensor:
    """Return the sum of what the ranks have, ``every`` [ranks, ...]: rank 0's first, then rank 1's, ..."""
    total = every[0]
    for other in every[1:]:
        total = total + other
    return total


def exchanged(parts: Tensor) -> Tensor:
    """Send every rank its part of ``parts`` [ranks, ...]; return the parts that they sent, in their order.

    Raises:
        LostRankError: another rank has ended.
    """
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    with _others():
        dist.all_to_all_single(received, parts)
    return received


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        minutes = TIMEOUT.total_seconds() / 60
        raise LostRankError(
            f"another rank has ended, or has not answered for {minutes:g} minutes; what it has said is to be "
            "found among its own lines. What is saved is whole: start as many processes again with --resume "
            f"({' '.join(str(error).split())})"
        ) from error


def gathered(value: T) -> list[T]:
    """Return the ``value`` of every rank, a plain one or tensors on the CPU, in their order."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with _others():
        dist.all_gather_object(values, value)
    return values


def totals(*values: float) -> list[float]:
    """Return the sum of every value over all ranks, added up in their order."""
    return [sum(column) for column in zip(*gathered(values), strict=True)]


def from_first(find: Callable[[], T]) -> T:
    """Return what ``find`` returns on rank 0, the only one that calls it; what it returns can be pickled.

    Raises:
        InputError: ``find`` did; on all ranks.
    """
    if size() == 1:
        return find()
    found: list[Any] = [None, None]
    if first():
        try:
            found[0] = find()
        except InputError as error:
            found[1] = error
    with _others():
        dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]


def columns(text: Tensor) -> Tensor:
    """Return this rank's part [rows, columns / ranks] of the columns of a text [rows, columns]."""
    return text.tensor_split(size(), 1)[rank()].contiguous()


def seed_own_stream(seed: int) -> None:
    """Have this rank draw random numbers of its own, for dropouts; rank 0 goes on with what it has."""
    if not first():
        digest = hashlib.sha256(repr((seed, rank())).encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def check_same(tensors: Mapping[str, Tensor], when: str) -> None:
    """Raise CheckFailedError, which names the ranks, unless all have these tensors to the bit."""
    if size() == 1:
        return
    every = gathered({name: _digest(tensor) for name, tensor in tensors.items()})
    for other, found in enumerate(every):
        differing = [name for name in every[0].keys() | found.keys() if every[0].get(name) != found.get(name)]
        if differing:
            raise CheckFailedError(
                f"{when} rank {other} has another {min(differing)} than rank 0 ({len(differing)} of "
                f"{len(every[0])} tensors differ): do all run on the same kind of processor, with as many "
                "threads and the same versions? The last checkpoint is from before: go on with --resume"
            )


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.tobytes()).hexdigest()
