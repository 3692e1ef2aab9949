"""The over-complete recurrent cell whose mixing weights are searched, on stock modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.arch import ArchModule, best_edges, initial_alphas
from dartsfast.backends import check_memory, resolve_backend
from dartsfast.errors import check_range
from dartsfast.recompute import recomputed
from dartsfast.rnn.genotypes import CONCAT, PRIMITIVES, STEPS, Genotype
from dartsfast.rnn.model import ACTIVATIONS, DARTSCell, RNNModel


class DARTSCellSearch(DARTSCell):
    """Every node mixes all activations of all earlier states; one batch norm serves all nodes."""

    weights: Tensor  # [36, 5], the alphas; set by RNNModelSearch before each pass

    def __init__(
        self,
        ninp: int,
        nhid: int,
        dropouth: float,
        dropoutx: float,
        genotype: Genotype | None = None,
    ) -> None:
        super().__init__(ninp, nhid, dropouth, dropoutx, genotype)
        self.bn = nn.BatchNorm1d(nhid, affine=False)
        self.memory = "store"

    def cell(self, x: Tensor, h_prev: Tensor, x_mask: Tensor | None, h_mask: Tensor | None) -> Tensor:
        """One time step: ``x`` [B, ninp], ``h_prev`` [B, nhid], masks or None; returns [B, nhid]."""
        if self.memory == "recompute" and torch.is_grad_enabled():
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
                unweighted = states + c * (ACTIVATIONS[name](h) - states)
                s = s + torch.sum(probs[offset : offset + i + 1, k, None, None] * unweighted, dim=0)
            states = torch.cat([states, self.bn(s).unsqueeze(0)], 0)
            offset += i + 1
        return torch.mean(states[-CONCAT:], dim=0)


class RNNModelSearch(RNNModel, ArchModule):
    """The language model with a search cell.

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
        memory: ``store``, or ``recompute`` to keep only the states between time steps.

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
        super().__init__(*args, cell_cls=DARTSCellSearch)
        self._args = args
        self._backend = backend
        self._memory = check_memory(memory)
        self.backend = resolve_backend(backend, network="rnn")
        self.add_arch_parameter("weights", initial_alphas(sum(range(1, STEPS + 1)), len(PRIMITIVES)))
        for rnn in self.rnns:
            rnn.memory = memory  # type: ignore[assignment]

    def forward(self, input: Tensor, hidden: list[Tensor], return_h: bool = False):
        """Map tokens to log-probabilities, as :meth:`RNNModel.forward`, with the alphas of now."""
        for rnn in self.rnns:
            rnn.weights = self.weights
        return super().forward(input, hidden, return_h)

    def new(self) -> RNNModelSearch:
        """Return a model of the same shape on the same device: fresh weights, these alphas."""
        model = RNNModelSearch(*self._args, backend=self._backend, memory=self._memory).to(self.weights)
        with torch.no_grad():
            model.weights.copy_(self.weights)
        return model

    def _loss(self, hidden: list[Tensor], input: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        check_range(target, self.ntoken, "target", "a vocabulary of {}: ids run from 0")
        log_prob, hidden_next = self(input, hidden, return_h=False)
        return F.nll_loss(log_prob.view(-1, log_prob.size(2)), target.reshape(-1)), hidden_next

    def genotype(self) -> Genotype:
        """Read the cell off the alphas: the strongest predecessor a node, ``none`` left out (section 2.4)."""
        probabilities = F.softmax(self.weights.detach(), dim=-1).cpu().numpy()
        gene = best_edges(probabilities, PRIMITIVES, range(1, STEPS + 1), keep=1)
        return Genotype(recurrent=gene, concat=range(STEPS + 1)[-CONCAT:])
