"""Counts the launches of a search iteration without running it: on tensors without values.

Tensors lie on torch's device ``meta``: shapes, strides and dtypes, no memory and no arithmetic. Triton
kernels are noted where they would be launched; of stock operators every one that is not a view or an
allocation counts as one launch that reads its inputs and writes its outputs once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.costs import Launch, extent, kernel_launch, storage
from bench.peers import Iteration
from dartsfast.backends import triton as triton_backend
from dartsfast.bilevel import engine, flat
from dartsfast.errors import InputError
from dartsfast.ops.contract import CONTRACTS

META = torch.device("meta")
# Views, allocations, and operators that no device runs.
FREE = {
    "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided",
    "_unsafe_view",
}  # fmt: skip
# What they write they do not read.
WRITERS = {"copy_", "_foreach_copy_", "fill_", "zero_", "_foreach_zero_"}


class Counter(TorchDispatchMode):
    """Notes every launch of a stock operator in ``launches``; :func:`counting` also has it note kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from dartsfast.kernels import OPERATORS

        name = func.overloadpacket.__name__
        if func.namespace == "dartsfast" and name in OPERATORS:
            return self._operator(OPERATORS[name], CONTRACTS[name], args)
        out = func(*args, **(kwargs or {}))
        # A view made in place (transpose_, detach_, as_strided_) is marked as a write, and writes nothing.
        if name not in FREE and torch.Tag.inplace_view not in func.tags:
            self._stock(func, name, args, kwargs or {}, out)
        return out

    def _operator(
        self, fill: Callable[..., None], contract: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        out = contract(*args)
        with self:  # an operator may copy before it launches
            fill(out, *args)
        return out

    def _stock(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        written, only_written = [], set()
        for i, argument in enumerate(func._schema.arguments):
            if argument.is_write:
                given = _tensors(kwargs.get(argument.name, args[i] if i < len(args) else None))
                written += given
                if name in WRITERS or argument.is_out or (name == "gemm_" and not args[3]):
                    only_written |= {id(t) for t in given}
        own = {storage(t) for t in inputs}
        fresh = [t for t in outputs if storage(t) not in own]
        if not fresh and not written:
            return  # a view
        read = [t for t in inputs if id(t) not in only_written]
        size = sum(map(extent, [*read, *fresh, *written]))
        self.launches.append(Launch(name, size, _operations(name, args, out), False))

    def grouped(self, work: Any, *tables: Any) -> None:
        """Note a launch of a grouped kernel, which knows what it costs: takes what ``Work.launch`` takes."""
        arguments = len(tree_leaves((tables, work.arguments, list(work.options))))
        self.launches.append(
            Launch(work.kernel.__name__, work.bytes, work.operations, True, work.rounds, arguments)
        )

    def kernel(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        """Note a Triton kernel; takes what ``dartsfast.kernels.launch.launch`` takes."""
        arguments = {**dict(zip(kernel.arg_names, args, strict=False)), **meta}
        self.launches.append(kernel_launch(kernel.__name__, arguments, grid))


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _operations(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Return the operations of a stock operator: of products and convolutions, else one an output."""
    if name in ("mm", "bmm"):
        return 2 * out.numel() * args[0].shape[-1]
    if name in ("addmm", "addmm_"):
        return 2 * out.numel() * args[1].shape[-1]
    if name == "gemm_":  # the library's, on a GPU
        return 2 * args[1].numel() * args[2].shape[1]
    if name == "_linear_cross_entropy_batch_chunked":  # logits, and the gradients that are asked for
        products = 1 + sum(g.numel() > 0 for g in out[1:3])
        return 2 * args[0].numel() * len(args[1]) * products
    if name == "convolution":
        return 2 * out.numel() * args[1][0].numel()
    if name == "convolution_backward":
        g, _, weight = args[:3]
        return 2 * g.numel() * weight[0].numel() * sum(args[-1][:2])
    return sum(t.numel() for t in _tensors(out))


@contextmanager
def counting() -> Iterator[list[Launch]]:
    """Note the launches within the block, in order."""
    from dartsfast.kernels.grouped import Work

    counter = Counter()
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("dartsfast.kernels.") and hasattr(module, "launch"):
                stack.enter_context(mock.patch.object(module, "launch", counter.kernel))
        from dartsfast.kernels.grouped import Work

        stack.enter_context(
            mock.patch.object(Work, "launch", lambda work, *tables: counter.grouped(work, *tables))
        )
        stack.enter_context(counter)
        yield counter.launches


@contextmanager
def pretending() -> Iterator[None]:
    """Let tensors of the device ``meta`` pass for a GPU's within the block.

    Raises:
        InputError: Triton cannot be imported.
    """
    if missing := triton_backend.load():
        raise InputError(f"the model counts the Triton kernels: {missing}")
    from dartsfast.kernels.grouped import Work

    devices = [*_foreach_utils._get_foreach_kernels_supported_devices(), "meta"]
    patches = [
        (triton_backend, "missing", lambda: None),
        (triton_backend, "DEVICES", ("meta",)),
        (Work, "launch", lambda work, *to: None),
        (engine, "_finite", lambda gradients: gradients),
        # The weights lie where flatten_ would have moved them.
        (flat.Group, "_find_buffer", lambda g: torch.empty(g.size, dtype=g.dtype, device=g.device)),
        # Optimisers and clipping take all tensors at once, as on a GPU.
        (_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: devices),
        (optimizer, "_get_foreach_kernels_supported_devices", lambda: devices),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        yield


def prepare(iteration: Iteration) -> None:
    """Give both optimisers the state that they have from their second step on."""
    for own in (iteration.optimizer, iteration.architect.optimizer):
        for group in own.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        own.step()


def kept_bytes(loss: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Return the bytes that the pass of ``loss`` keeps for its backward: each storage once, no parameter."""
    left_out = {storage(p) for p in parameters}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if storage(tensor) not in left_out:
            kept[storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
