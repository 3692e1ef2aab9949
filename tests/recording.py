"""CUDA graphs on the CPU: operators are noted while an iteration is recorded, and run again in a replay."""

import contextlib
import importlib
from types import SimpleNamespace
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WAITS = ("_local_scalar_dense", "nonzero", "lift_fresh", "equal", "is_nonzero", "masked_select")
"""Operators that would wait for a GPU, or copy from the host to it."""


class Graph(TorchDispatchMode):
    """Stands in for a CUDA graph: entered, it records; what was recorded has then not happened.

    As on a GPU a replay runs the operators alone, on the memory that they had and with new random numbers.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.replays = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                self.before += [(t.detach(), t.clone()) for t in _tensors(value)]
        given = _aliases((args, kwargs))  # shapes and strides as they are now
        out = func(*args, **kwargs)
        if not func.is_view and torch.Tag.inplace_view not in func.tags:
            self.calls.append((func, *given, _aliases(out)))
        return out

    def reset(self):
        self.calls.clear()

    def undo(self):
        """Put back what the operators wrote, the last first."""
        for tensor, value in reversed(self.before):
            tensor.copy_(value)
        self.before.clear()

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            for ours, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if ours.data_ptr() != new.data_ptr():
                    ours.copy_(new)


@contextlib.contextmanager
def unseen():
    """Let labels pass unseen within the context, as on a GPU."""
    with contextlib.ExitStack() as stack:
        for module in ("cnn.checks", "rnn.model"):
            stack.enter_context(mock.patch(f"dartsfast.{module}.check_range", lambda *args: None))
        stack.enter_context(mock.patch("dartsfast.rnn.model.is_padded", lambda target: False))
        yield


@contextlib.contextmanager
def played():
    """Within the context what is captured is played on the CPU; gives the streams that are made."""
    made = []

    def new_stream():
        made.append(SimpleNamespace(wait_stream=lambda other: None))
        return made[-1]

    def record(graph, pool):
        assert pool == "pool"
        return recording(graph)

    stream = new_stream()
    stand_ins = {
        "device": lambda device: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": record,
        "graph_pool_handle": lambda: "pool",
        "Stream": new_stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
    }
    adam = importlib.import_module("torch.optim.adam")
    with (
        unseen(),
        mock.patch.multiple(torch.cuda, **stand_ins),
        mock.patch.object(adam, "_get_capturable_supported_devices", lambda: ["cpu"]),
    ):
        yield made


@contextlib.contextmanager
def recording(graph):
    """Record what runs within the context, as ``torch.cuda.graph`` does."""
    random = torch.get_rng_state()
    stream = SimpleNamespace(is_capturing=lambda: True)  # optimisers ask it whether they may be recorded
    with (
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: True),
        mock.patch.object(torch.accelerator, "current_stream", lambda: stream),
        torch.no_grad(),
    ):
        try:
            with graph, torch.enable_grad():
                yield
        finally:
            graph.undo()
            torch.set_rng_state(random)


def _aliases(tree):
    return tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, tree)


def _tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]
