"""An iteration as a CUDA graph: recorded once, then replayed with one launch.

Python and the launches of thousands of small kernels leave a GPU waiting; a graph does not. A recording is
of one set of shapes and numbers: another learning rate or length of text is recorded anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dartsfast.errors import InputError

Step = Callable[..., tuple[Tensor, ...]]
KEPT = 4  # recordings: full and half-length texts, and the ends of texts
WARM_UP = 3  # iterations run before anything is recorded: they compile kernels and make optimisers' state

_failed: list[Any] = []  # graphs whose recording failed: torch's allocator may still ask them about streams


@dataclass
class Recording:
    """A graph, the tensors that it reads, and those that it writes."""

    graph: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Captured:
    """Runs ``step`` from recordings; where it cannot be recorded runs it as it is, aloud, or raises.

    What is run for the first time, and the first :data:`WARM_UP` iterations, is not recorded: it compiles
    kernels and makes what later iterations find. Beyond :data:`KEPT` recordings the one that has gone
    unused for longest is dropped.

    Args:
        step: an iteration on tensors of ``device``, without a wait for it. It may move whatever it likes in
            place; what it returns is valid until the next call.
        device: a CUDA device.
        required: raise where it cannot be recorded.
    """

    def __init__(self, step: Step, device: torch.device, *, required: bool = False) -> None:
        self.step, self.device, self.required = step, device, required
        self.ran = 0
        self.seen: set[Hashable] = set()
        self.recordings: dict[Hashable, Recording] = {}  # the last used is last
        self.pool: Any = None  # memory that all recordings share, as they run one after the other
        self.stream: Any = None
        self.possible = True

    def __call__(self, *inputs: Tensor, numbers: tuple[float, ...]) -> tuple[Tensor, ...]:
        """Run an iteration on ``inputs``; ``numbers`` are those that ``step`` reads from elsewhere.

        Raises:
            InputError: recordings are required, and this iteration cannot be recorded.
        """
        if not self.possible:
            return self.step(*inputs)
        with torch.cuda.device(self.device):
            kind = numbers, tuple((x.shape, x.dtype) for x in inputs)
            recording = self.recordings.pop(kind, None)
            if recording is None and (self.ran < WARM_UP or kind not in self.seen):
                self.ran += 1
                self.seen.add(kind)
                return self._eagerly(inputs)
            if recording is None:
                try:
                    recording = self._record(inputs)
                except RuntimeError as error:
                    return self._give_up(error, inputs)
            self.recordings[kind] = recording
            for ours, given in zip(recording.inputs, inputs, strict=True):
                ours.copy_(given)
            recording.graph.replay()
            return recording.outputs

    def _eagerly(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # What is to be recorded warms up on a stream of its own.
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # Adam's, once, that it need not count its steps on the device.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            outputs = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> Recording:
        if len(self.recordings) == KEPT:
            del self.recordings[next(iter(self.recordings))]
        own = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        try:
            # A graph that fails leaves its own stream the current one.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=self.pool):
                outputs = self.step(*own)
        except RuntimeError:
            graph.reset()  # its memory, if it ended as it should
            _failed.append(graph)
            _release_random_numbers()
            raise
        return Recording(graph, own, outputs)

    def _give_up(self, error: RuntimeError, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        cause = _first(error)
        if self.required:
            raise InputError(
                f"capture: an iteration cannot be recorded: {cause}. Leave --capture out, which then runs "
                "iterations as they are, or say --no-capture"
            ) from error
        self.possible = False
        self.recordings.clear()
        self.pool = self.stream = None
        warnings.warn(f"capture: an iteration cannot be recorded, so none is: {cause}", stacklevel=3)
        return self.step(*inputs)


def _first(error: BaseException) -> BaseException:
    """Return the error that others came of, such as those of ending what it had made invalid."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error


def _release_random_numbers() -> None:
    """Record nothing: a generator serves no launches until a recording has ended as it should."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is nothing in it
        with torch.cuda.graph(torch.cuda.CUDAGraph(), pool=torch.cuda.graph_pool_handle()):
            pass
