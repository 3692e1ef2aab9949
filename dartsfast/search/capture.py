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

Step = Callable[..., tuple[Tensor, ...]]
KEPT = 4  # recordings: full and half-length texts, and the ends of texts
WARM_UP = 3  # iterations run before anything is recorded: they compile kernels and make optimisers' state


@dataclass
class Recording:
    """A graph, the tensors that it reads, and those that it writes."""

    graph: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Captured:
    """Runs ``step`` from recordings; runs it as it is, aloud, where it cannot be recorded.

    Args:
        step: an iteration on tensors of one CUDA device, without a wait for that device. It may move
            whatever it likes in place; what it returns is valid until the next call.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.ran = 0
        self.recordings: dict[Hashable, Recording] = {}
        self.pool: Any = None  # memory that all recordings share, as they run one after the other
        self.possible = True

    def __call__(self, *inputs: Tensor, numbers: tuple[float, ...]) -> tuple[Tensor, ...]:
        """Run an iteration on ``inputs``; ``numbers`` are those that ``step`` reads from elsewhere."""
        if not self.possible or self.ran < WARM_UP:
            self.ran += 1
            return self._eagerly(inputs)
        kind = numbers, tuple((x.shape, x.dtype) for x in inputs)
        if kind not in self.recordings:
            if len(self.recordings) == KEPT:
                del self.recordings[next(iter(self.recordings))]
            try:
                self.recordings[kind] = self._record(inputs)
            except RuntimeError as error:
                self.possible = False
                warnings.warn(f"capture: an iteration cannot be recorded, so none is: {error}", stacklevel=2)
                return self.step(*inputs)
        recording = self.recordings[kind]
        for ours, given in zip(recording.inputs, inputs, strict=True):
            ours.copy_(given)
        recording.graph.replay()
        return recording.outputs

    def _eagerly(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # What is to be recorded warms up on a stream of its own.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> Recording:
        own = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = self.step(*own)
        return Recording(graph, own, outputs)
