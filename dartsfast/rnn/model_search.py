"""The over-complete recurrent cell whose mixing weights are searched (the original's ``model_search.py``)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.backends import check_memory
from dartsfast.constants import constant
from dartsfast.errors import InputError
from dartsfast.fused import rnn as fused
from dartsfast.modules.arch import ArchModule, best_edges, initial_alphas, place_alpha
from dartsfast.modules.plain import is_plain
from dartsfast.modules.recompute import recomputed
from dartsfast.names import MEMORY_MODES
from dartsfast.ops import alpha_softmax
from dartsfast.ops.rnn_node import ACTIVATIONS as FUSED_ACTIVATIONS
from dartsfast.rnn import budget
from dartsfast.rnn.genotypes import CONCAT, PRIMITIVES, STEPS, Genotype
from dartsfast.rnn.model import BUILT_ACTIVATIONS, BUILT_METHODS, DARTSCell, RNNModel
from dartsfast.sizes import in_bytes


class DARTSCellSearch(DARTSCell):
    """Every node mixes all activations of all earlier states; one batch norm serves all nodes."""

    weights: Tensor  # [36, 5], the alphas; set by RNNModelSearch

    def __init__(self, ninp: int, nhid: int, dropouth: float, dropoutx: float) -> None:
        super().__init__(ninp, nhid, dropouth, dropoutx, genotype=None)
        self.bn = nn.BatchNorm1d(nhid, affine=False)
        self.memory: str | int = "store"  # or how many time steps, the last ones, are stored
        self.fused = False

    def recur(self, inputs: Tensor, state: Tensor, x_mask: Tensor | None, h_mask: Tensor | None) -> Tensor:
        """Run all time steps of ``inputs`` [T, B, ninp] from ``state`` [B, nhid]; returns [T, B, nhid]."""
        if not self.fused or not is_as_built(self):
            return super().recur(inputs, state, x_mask, h_mask)
        mixing = alpha_softmax([self.weights])[0]
        kept = self.memory if isinstance(self.memory, int) else len(inputs) * (self.memory == "store")
        return fused.recurrence(
            self.bn,
            kept,
            inputs if x_mask is None else inputs * x_mask,
            state,
            h_mask,
            F.pad(mixing, (0, 1))[:, _columns(tuple(PRIMITIVES), mixing.device)],
            self._W0,
            list(self._Ws),
        )

    def cell(self, x: Tensor, h_prev: Tensor, x_mask: Tensor | None, h_mask: Tensor | None) -> Tensor:
        """One time step: ``x`` [B, ninp], ``h_prev`` [B, nhid], masks or None; returns [B, nhid]."""
        if self.memory != "store" and torch.is_grad_enabled():
            return recomputed(self, self._mixed_cell, x, h_prev, x_mask, h_mask)
        return self._mixed_cell(x, h_prev, x_mask, h_mask)

    def _mixed_cell(self, x: Tensor, h_prev: Tensor, x_mask: Tensor | None, h_mask: Tensor | None) -> Tensor:
        s0 = self.bn(self._compute_init_state(x, h_prev, x_mask, h_mask))
        probs = F.softmax(self.weights, dim=-1)
        states = s0.unsqueeze(0)  # [nodes so far, B, nhid]
        offset = 0
        for i, W in enumerate(self._Ws):
            masked = states if h_mask is None else states * h_mask
            ch = masked.view(-1, self.nhid).mm(W).view(i + 1, -1, 2 * self.nhid)
            c, h = torch.split(ch, self.nhid, dim=-1)
            c = c.sigmoid()
            s = torch.zeros_like(s0)
            for k, name in enumerate(PRIMITIVES):
                if name == "none":
                    continue
                unweighted = states + c * (self._get_activation(name)(h) - states)
                s = s + torch.sum(probs[offset : offset + i + 1, k, None, None] * unweighted, dim=0)
            states = torch.cat([states, self.bn(s).unsqueeze(0)], 0)
            offset += i + 1
        return torch.mean(states[-CONCAT:], dim=0)


@constant
def _columns(primitives: tuple[str, ...], device: torch.device) -> Tensor:
    """Where ``primitives`` has the fused cell's activations; -1, a column of zeros, for one it lacks."""
    found = [primitives.index(name) if name in primitives else -1 for name in FUSED_ACTIVATIONS]
    return torch.tensor(found, device=device)


# What the fused cell computes in place of.
_METHODS = {
    **BUILT_METHODS,
    **{name: getattr(DARTSCellSearch, name) for name in ("recur", "cell", "_mixed_cell")},
}


def is_as_built(cell: Any) -> bool:
    """Whether the fused cell computes what ``cell`` does; where not, warn of the first reason."""
    why = _alteration(cell)
    if why is not None:
        warnings.warn(f"the RNN's cell runs step by step, not fused: {why}", stacklevel=2)
    return why is None


def _alteration(cell: Any) -> str | None:
    kind = type(cell)
    for name, method in _METHODS.items():
        if name in vars(cell) or getattr(kind, name, None) is not method:
            return f"{kind.__name__}.{name} is not that of DARTSCellSearch"
    norm, steps = cell.bn, len(cell._Ws)
    if not is_plain(norm, nn.BatchNorm1d) or norm.weight is not None or norm.bias is not None:
        return f"its batch norm has hooks or is no BatchNorm1d without affine: {norm}"
    if steps != CONCAT:
        return f"it averages CONCAT = {CONCAT} states, and has {steps} nodes"
    names = [name for name in PRIMITIVES if name != "none"]
    for name in names:
        if names.count(name) > 1 or name not in FUSED_ACTIVATIONS:
            return f"PRIMITIVES has {name!r}, which is not one of {', '.join(FUSED_ACTIVATIONS)} once"
        if cell._get_activation(name) is not BUILT_ACTIVATIONS[name]:
            return f"its activation {name!r} is another function"
    expected = [sum(range(1, steps + 1)), len(PRIMITIVES)]
    if list(cell.weights.shape) != expected:
        return f"its alphas are {list(cell.weights.shape)}, where edges and PRIMITIVES are {expected}"
    return None


class RNNModelSearch(RNNModel, ArchModule):
    """The language model with a search cell.

    ``DistributedDataParallel`` does not average the gradients of the alphas, which are no parameters; the
    ``Architect`` does.

    Args:
        ntoken: size of the vocabulary.
        ninp: features of the embedding.
        nhid: features of the hidden state.
        nhidlast: features of the last layer; the three must be equal.
        dropout: dropout of the cell's outputs.
        dropouth: dropout of hidden states in the cell.
        dropoutx: dropout of the cell's inputs.
        dropouti: dropout of the embedded input.
        dropoute: dropout of whole words.
        backend: ``auto``, ``reference``, or a fused backend (see :mod:`dartsfast.backends`).
        memory: ``store``, ``recompute`` to keep only the states between time steps, or a budget for all that
            a pass takes beside model, data and optimisers, such as ``800MB`` or ``50%`` of what is free:
            of as many time steps as fit, the last ones, everything is kept (:meth:`fit_memory`).

    Raises:
        InputError: feature counts that differ, unknown backend or memory mode.
    """

    weights: Tensor

    def __init__(
        self,
        ntoken: int,
        ninp: int,
        nhid: int,
        nhidlast: int,
        dropout: float = 0.5,
        dropouth: float = 0.5,
        dropoutx: float = 0.5,
        dropouti: float = 0.5,
        dropoute: float = 0.1,
        *,
        backend: str = "auto",
        memory: str = "store",
    ) -> None:
        args = (ntoken, ninp, nhid, nhidlast, dropout, dropouth, dropoutx, dropouti, dropoute)
        super().__init__(*args, cell_cls=DARTSCellSearch, backend=backend)
        self._args = args
        self._memory = check_memory(memory, budget=True)
        self._fits: list[budget.TextFit] = []
        self._initialize_arch_parameters()
        for rnn in self.rnns:
            rnn.memory = memory if memory in MEMORY_MODES else "recompute"  # type: ignore[assignment]

    def _initialize_arch_parameters(self) -> None:
        # A method, as in the original, for those who override it or call it to start over.
        self._arch_names = []
        alphas = initial_alphas(sum(range(1, STEPS + 1)), len(PRIMITIVES))
        self.add_arch_parameter("weights", alphas.to(self.encoder.weight))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "weights":  # the cells read their own attribute, as in the original
            for rnn in self.rnns:
                rnn.weights = value

    def _place_alpha(self, name: str, alpha: Tensor) -> None:
        super()._place_alpha(name, alpha)
        if name == "weights":
            for rnn in self.rnns:
                place_alpha(rnn, name, alpha)

    def _features(self, input: Tensor, hidden: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        for rnn in self.rnns:
            rnn.fused = self.backend != "reference"  # type: ignore[assignment]
        if self._memory not in MEMORY_MODES and torch.is_grad_enabled():
            self.fit_memory(input.shape)
        return super()._features(input, hidden)

    def fit_memory(self, text: Sequence[int], order: int = 1) -> budget.TextFit:
        """Choose how many time steps are kept so that passes over texts [T, B] fit the memory budget.

        Shorter texts of no more columns keep as many. ``order`` is that of the alphas' gradient: passes of
        the second have copies of the weights beside them.

        Raises:
            InputError: no budget, a cell that kernels do not serve, or a budget that nothing fits.
        """
        if self._memory in MEMORY_MODES:
            raise InputError(f"memory={self._memory!r} is no budget: give the model one, such as 800MB")
        found = next((fit for fit in self._fits if fit.serves(text, order)), None)
        if found is None:
            on_kernels = self.backend != "reference" and all(_alteration(rnn) is None for rnn in self.rnns)
            if not on_kernels:
                raise InputError(
                    f"memory={self._memory!r} is planned from what kernels do, which do not serve this cell: "
                    f"choose one of {', '.join(MEMORY_MODES)}"
                )
            found = budget.fit(self, text, in_bytes(self._memory, self.weights.device), order)
            self._fits.append(found)
        for rnn in self.rnns:
            rnn.memory = found.kept  # type: ignore[assignment]
        return found

    def new(self) -> RNNModelSearch:
        """Return a model of the same shape on the same device: fresh weights, these alphas."""
        model = RNNModelSearch(*self._args, backend=self._backend, memory=self._memory).to(self.weights)
        with torch.no_grad():
            model.weights.copy_(self.weights)
        model._fits = list(self._fits)
        return model

    def genotype(self) -> Genotype:
        """Read the cell off the alphas: the strongest predecessor a node, ``none`` left out (section 2.4)."""
        probabilities = F.softmax(self.weights.detach(), dim=-1).cpu().numpy()
        gene = best_edges(probabilities, PRIMITIVES, range(1, STEPS + 1), keep=1)
        return Genotype(recurrent=gene, concat=range(STEPS + 1)[-CONCAT:])
