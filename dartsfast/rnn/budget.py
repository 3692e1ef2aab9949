"""What the passes of an RNN search take, and how many time steps may be kept within a memory budget."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dartsfast.backends import pretending
from dartsfast.errors import InputError
from dartsfast.fused.budget import OPERATIONS_A_BYTE, largest_batch
from dartsfast.fused.planning import Plan, needed, without_memory
from dartsfast.rnn.model import search_loss
from dartsfast.sizes import in_words


class Kind(NamedTuple):
    """A kind of pass: what it is for, whose gradients it takes, how often, and beside how many copies of the
    weights it runs: those to restore, and in the finite difference the vector of the product."""

    purpose: str
    of: str
    times: int
    copies: int


_STEP = Kind("weights' step", "both", 1, 0)
_AT_THE_VIRTUAL_STEP = Kind("validation", "both", 1, 1)
_DIFFERENCE = Kind("finite difference", "alphas", 2, 2)
ITERATION = {
    1: (Kind("validation", "alphas", 1, 0), _STEP),
    2: (Kind("virtual step", "weights", 1, 0), _AT_THE_VIRTUAL_STEP, _DIFFERENCE, _STEP),
}
"""The passes of an iteration, by order."""

_LARGEST = {1: (_STEP,), 2: (_AT_THE_VIRTUAL_STEP, _DIFFERENCE, _STEP)}  # those that may need the most


class TextPass(NamedTuple):
    """A forward and a backward over a text.

    Attributes:
        kind: what it is.
        operations: of its products.
        moved: bytes that its kernels read and write.
        time: of its kernels, each the longer of both, in those of a byte.
        kept: bytes that live between the two.
        peak: bytes that live at most. Both are beside model, data and optimisers.
        beside: bytes of copies of the weights that live all the time.
    """

    kind: Kind
    operations: int
    moved: int
    time: float
    kept: int
    peak: int
    beside: int


@dataclass(frozen=True)
class TextFit:
    """A plan that fits a budget.

    Attributes:
        text: [T, B] that it is for.
        order: of the alphas' gradient, likewise.
        kept: time steps, the last ones, whose states and gates are kept.
        peak: bytes that an iteration takes at most, beside model, data and optimisers.
        least: the same where none is kept.
        price: time of a pass over that of one that keeps all, by operations and bytes.
    """

    text: tuple[int, ...]
    order: int
    kept: int
    peak: int
    least: int
    price: float

    def serves(self, text: Sequence[int], order: int) -> bool:
        """Whether an iteration over such a text takes no more."""
        return order <= self.order and all(a <= b for a, b in zip(text, self.text, strict=True))

    def __str__(self) -> str:
        return (
            f"keeps {self.kept} of {self.text[0]} time steps; peak {in_words(self.peak)} "
            f"(least {in_words(self.least)}), {self.price:.2f} times the time of keeping all"
        )


def iteration(model: Any, text: Sequence[int], order: int) -> list[TextPass]:
    """Return the passes of an iteration of ``model``, as it keeps now, over texts [T, B], before any runs."""
    twin = _twin(model)
    return [_planned(twin, text, kind) for kind in ITERATION[order]]


def fit(model: Any, text: Sequence[int], budget: int, order: int) -> TextFit:
    """Return how many time steps may be kept within ``budget`` bytes: the most, which is the fastest.

    Args:
        model: :class:`dartsfast.rnn.model_search.RNNModelSearch` on kernels.
        text: [T, B].
        budget: bytes beside model, data and optimisers.
        order: of the alphas' gradient: with the second, passes have copies of the weights beside them.

    Raises:
        InputError: nothing fits; it says what would.
    """
    twin, (T, B) = _twin(model), text

    @functools.cache
    def passes(kept: int) -> list[TextPass]:
        return _keeping(twin, kept, text, order)

    least, most = (_peak(passes(kept)) for kept in (0, T))
    if least > budget:
        batch = largest_batch(B, least, budget, lambda batch: _peak(_keeping(twin, 0, (T, batch), order)))
        advice = f"columns in batches of {batch} at most" if batch > 1 else "fewer columns"
        raise InputError(
            f"a memory budget of {in_words(budget)} is too little: passes over texts {list(text)} take "
            f"{in_words(least)} with no time step kept. Give it that, or {advice}, or shorter texts"
        )
    kept = T
    if most > budget:  # a time step takes what a time step takes, but for the rounding of blocks
        kept = (budget - least) * T // (most - least)
        while kept and _peak(passes(kept)) > budget:
            kept -= 1
        while kept < T - 1 and _peak(passes(kept + 1)) <= budget:
            kept += 1
    price = passes(kept)[0].time / passes(T)[0].time
    return TextFit(tuple(text), order, kept, _peak(passes(kept)), least, price)


def _twin(model: Any) -> Any:
    twin = without_memory(model)
    twin._memory = "store"  # what it is within a plan is said cell by cell
    return twin


def _peak(passes: Sequence[TextPass]) -> int:
    return max(p.peak + p.beside for p in passes)


def _keeping(model: Any, kept: int, text: Sequence[int], order: int) -> list[TextPass]:
    for rnn in model.rnns:
        rnn.memory = kept
    return [_planned(model, text, kind) for kind in _LARGEST[order]]


def _planned(model: Any, text: Sequence[int], kind: Kind) -> TextPass:
    """Return a pass of ``model``, which is on the device ``meta``, over texts [T, B]."""
    groups = {"alphas": model.arch_parameters(), "weights": list(model.parameters())}
    for name, group in groups.items():
        for t in group:
            t.requires_grad_(kind.of in (name, "both"))
    wanted = [t for group in groups.values() for t in group if t.requires_grad]
    tokens = torch.empty(text, dtype=torch.int64, device="meta")
    hidden = model.init_hidden(text[1])
    plan, work = Plan(model._backend), _Work(1 - model.dropout)
    with pretending(model._backend), plan, work:
        if kind is _STEP:
            loss = search_loss(model, hidden, tokens, tokens, beta=1.0)[0]
        else:
            loss = model._loss(hidden, tokens, tokens)[0]
        kept = plan.in_use
        torch.autograd.grad(loss, wanted, allow_unused=True)
    beside = kind.copies * sum(w.numel() * w.itemsize for w in groups["weights"])
    peak = needed(plan.peak, plan.runner)
    return TextPass(kind, work.operations, work.moved, work.time, kept, peak, beside)


class _Work(TorchDispatchMode):
    """Counts what kernels and stock products within its block do.

    Args:
        share: of the features that the decoder multiplies, what dropout leaves.
    """

    def __init__(self, share: float) -> None:
        from torch.utils.flop_counter import flop_registry  # loads Triton where it is installed

        super().__init__()
        self._stock, self.share = flop_registry, share
        self.operations = self.moved = 0
        self.time = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        stock = self._stock.get(func._overloadpacket)
        if stock is not None:
            operations = stock(*args, **kwargs, out_val=out)
        elif func.namespace == "dartsfast" and func._opname != "empty":
            operations = self._operations(func._opname, args)
        else:
            return out
        tensors = [t for t in tree_leaves((args, out)) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.itemsize for t in tensors)
        self.operations += operations
        self.moved += moved
        self.time += max(operations / OPERATIONS_A_BYTE, moved)
        return out

    def _operations(self, name: str, args: tuple[Any, ...]) -> int:
        if name == "gemm_":
            (M, N), K = args[0].shape, args[1].shape[1]
            return int(2 * M * N * K)
        if name.startswith("locked_linear_"):
            logits = args[0] if name == "locked_linear_" else args[1]  # [N, T, V]
            mask = args[3] if name == "locked_linear_weight_gradient_" else args[2]  # [N, H]
            return int(2 * logits.numel() * mask.shape[1] * self.share)
        return 0
