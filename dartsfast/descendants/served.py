"""The ``forward`` that an accelerated operation has of its own, and what computes in its place."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.autograd import forward_ad

from dartsfast.backends import resolve_backend
from dartsfast.backends.table import KERNEL_DTYPES
from dartsfast.descendants.lazy import Lazy
from dartsfast.descendants.pending import Call, Cat, Pending, Sum, Weighted, like
from dartsfast.descendants.plans import Plans
from dartsfast.descendants.recognise import REPLICATE, Recognised
from dartsfast.descendants.sources import origin
from dartsfast.modules.plain import hooks_of_all

_OFTEN = 3
"""How many sums of an operation are too small before it waits for none of their size."""

_DEEPEST = 16
"""How many operations may wait for each other."""


class _Last(threading.local):
    """The last call in a thread: of other threads' the order is nobody's."""

    def __init__(self) -> None:
        self.call: Callable[[], Call | None] = lambda: None


class Served:
    """The forward of a module that was recognised; it finds everything through the module.

    Copies and pickles of the module have one that knows nothing yet.

    Args:
        module: the operation.
        found: what it computes.
        backend, memory: as :func:`dartsfast.accelerate` takes them.
        fewest: values of a source, of fewer of which the user's own forward is faster.
        work: layers times values of a sum, for less of which its operations run as they are.
    """

    stands_in = True
    """It computes what the forward of the module's class does."""

    def __init__(
        self, module: nn.Module, found: Recognised, backend: str, memory: str, fewest: int = 0, work: int = 0
    ) -> None:
        self.module, self.backend, self.memory = module, backend, memory
        self.fewest, self.work = fewest, work
        self.stride, self.channels = found.stride, found.channels
        self.layers = len(found.layers)
        self.halves = found.operation.kind == "reduce"
        self.kind = found.operation.kind
        self._begin()

    def _begin(self) -> None:
        self.plans = Plans(self.work)
        self._unpaid, self._least = 0, self.fewest
        self._last = _Last()
        self._backends: dict[Any, bool] = {}

    def __getstate__(self) -> dict[str, Any]:
        known = ("plans", "_unpaid", "_least", "_last", "_backends")
        return {name: value for name, value in self.__dict__.items() if name not in known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return what the user's forward would, computed later where kernels serve."""
        if len(args) != 1 or options:
            return type(self.module).forward(self.module, *args, **options)
        (x,) = args
        pending = x.pending if type(x) is Lazy else None
        if pending is not None and not self._waits_for(pending):
            x, pending = x.value(), None
        last = self._last.call()
        if last is not None and last.value is None and not last.taken:
            last.get()  # running statistics move in the order of calls
        image = x if pending is None else pending.like
        if self._least and type(image) is Tensor and image.numel() < self._least:
            return type(self.module).forward(self.module, x if pending is None else x.value())
        if not self._serves(image):
            return type(self.module).forward(self.module, x if pending is None else x.value())
        source = x
        if pending is not None:
            source, pending.read = pending, True
        x = image
        N, C, H, W = x.shape
        s = self.stride
        shape = N, C if self.channels is None else self.channels[1], (H - 1) // s + 1, (W - 1) // s + 1
        recorded = torch.is_grad_enabled()
        call = Call(self, source, like(shape, x.dtype, x.device, recorded), recorded)
        self._last.call = ref(call)
        return Lazy.of(call)

    @staticmethod
    def _waits_for(pending: Pending) -> bool:
        """Whether a source need not be computed before what is computed of it, as within a cell."""
        if not pending.waits(torch.is_grad_enabled()) or pending.taken:
            return False
        value, _ = origin(pending)
        if isinstance(value, Call) and value.operator.kind == "library":
            return False
        return pending.depth < _DEEPEST and isinstance(value, (Call, Sum))

    def _serves(self, x: Any) -> bool:
        """Whether kernels may compute of ``x``: an ordinary image, in a world without transforms."""
        if type(x) is not Tensor and type(x) is not nn.Parameter:
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.dim() != 4:
            return False
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return False
        kind = x.device.type
        if hooks_of_all() or self.module._backward_hooks or self.module._backward_pre_hooks:
            return False
        # A checkpoint runs again what it ran: results must be computed within. One kind runs without
        # autograd, as functions of one's own do, which do not see that their result waits.
        apart = not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if (apart and (x.requires_grad or self.module.training)) or _top_saved_tensors_default_hooks(True):
            return False
        N, C, H, W = x.shape
        s = self.stride
        if N * ((H - 1) // s + 1) * ((W - 1) // s + 1) <= 1 or not C:
            return False
        if (self.channels is not None and self.channels[0] != C) or (self.halves and (H % 2 or W % 2)):
            return False
        return self._backend_serves(x) and not (
            torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        )

    def _backend_serves(self, x: Tensor) -> bool:
        key = x.device, x.dtype
        if key not in self._backends:
            served = x.dtype in KERNEL_DTYPES
            self._backends[key] = served and resolve_backend(self.backend, *key) != "reference"
        return self._backends[key]

    def unpaid(self, values: int) -> None:
        """Note that a sum with this was too small to pay; after some it waits for none of this size."""
        self._unpaid += 1
        if self._unpaid >= _OFTEN:
            self._least = max(self._least, values + 1)

    def compute(self, calls: Sequence[Weighted], rest: Sequence[Weighted]) -> Tensor:
        """Return the sum of calls, the first of this operator, and of tensors."""
        (value, scale, factors, _), *others = calls
        value.settle()
        if not others and not rest and scale == 1.0 and not factors:
            if self.kind == "skip":
                return value.source
            if self.kind in ("zero", "library"):
                return self.alone(value)
        return self.plans.compute(calls, rest)

    def together(self, cat: Cat) -> Tensor | None:
        """Return values side by side as one program; None where they are none."""
        return self.plans.together(cat)

    def alone(self, call: Call) -> Tensor:
        """Return what the user's own forward gives."""
        return type(self.module).forward(self.module, call.source)

    def replicate(self) -> nn.Module:
        """Return what ``torch.nn.DataParallel`` takes as the module on a device, for one pass.

        Its weights are copies that nobody has seen before, for which programs would have to be made.
        """
        _warn_of_replicas()
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        del replica.__dict__["forward"], replica.__dict__[REPLICATE]
        return replica

    def discarded(self, call: Call) -> None:
        """Move running statistics as the forward would have done whose result nobody asked for."""
        norms = [m for m in self.module.modules() if isinstance(m, nn.BatchNorm2d)]
        if any(norm.training and norm.track_running_stats for norm in norms):
            with torch.no_grad():
                call.settle()
                self.alone(call)


@functools.cache  # once a process
def _warn_of_replicas() -> None:
    warnings.warn(
        "what torch.nn.DataParallel makes of an accelerated model runs as ordinary modules, not on kernels: "
        "take torch.nn.parallel.DistributedDataParallel",
        stacklevel=2,
    )
