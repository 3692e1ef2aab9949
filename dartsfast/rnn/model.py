"""The recurrent cell of a genotype and the language model around it (the original's ``model.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.errors import InputError, check_range
from dartsfast.genotypes import RNN, as_genotype
from dartsfast.rnn.genotypes import STEPS, Genotype
from dartsfast.rnn.utils import ACTIVATIONS, LockedDropout, embedded_dropout, mask2d

INITRANGE = 0.04

BUILT_ACTIVATIONS = dict(ACTIVATIONS)  # whatever a script puts in their place


class DARTSCell(nn.Module):
    """A recurrent highway cell whose nodes and activations a genotype names (paper appendix A.1.2).

    Args:
        ninp: features of the input.
        nhid: features of the hidden state.
        dropouth: dropout of hidden states, one mask for all time steps and nodes.
        dropoutx: dropout of the input, one mask for all time steps.
        genotype: the cell; None for a search cell, which has all of them.

    Raises:
        InputError: the genotype names an unknown activation or a node that does not come before.
    """

    def __init__(
        self, ninp: int, nhid: int, dropouth: float, dropoutx: float, genotype: Genotype | None
    ) -> None:
        super().__init__()
        if genotype is not None:
            # What overrides _get_activation may know more names.
            built = type(self)._get_activation is BUILT_METHODS["_get_activation"]
            genotype = as_genotype(genotype, RNN, known=ACTIVATIONS if built else None)
        self.nhid = nhid
        self.dropouth = dropouth
        self.dropoutx = dropoutx
        self.genotype = genotype
        steps = STEPS if genotype is None else len(genotype.recurrent)
        self._W0 = nn.Parameter(torch.empty(ninp + nhid, 2 * nhid).uniform_(-INITRANGE, INITRANGE))
        self._Ws = nn.ParameterList(
            nn.Parameter(torch.empty(nhid, 2 * nhid).uniform_(-INITRANGE, INITRANGE)) for _ in range(steps)
        )

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run over ``inputs`` [T, B, ninp] from ``hidden`` [1, B, nhid].

        Returns all states [T, B, nhid] and the last [1, B, nhid].
        """
        batch = inputs.size(1)
        x_mask = h_mask = None
        if self.training:
            x_mask = mask2d(batch, inputs.size(2), keep_prob=1.0 - self.dropoutx, like=inputs)
            h_mask = mask2d(batch, hidden.size(2), keep_prob=1.0 - self.dropouth, like=inputs)
        states = self.recur(inputs, hidden[0], x_mask, h_mask)
        return states, states[-1:]

    def recur(self, inputs: Tensor, state: Tensor, x_mask: Tensor | None, h_mask: Tensor | None) -> Tensor:
        """Run all time steps of ``inputs`` [T, B, ninp] from ``state`` [B, nhid]; returns [T, B, nhid]."""
        states = []
        for x in inputs:
            state = self.cell(x, state, x_mask, h_mask)
            states.append(state)
        return torch.stack(states)

    def _compute_init_state(
        self, x: Tensor, h_prev: Tensor, x_mask: Tensor | None, h_mask: Tensor | None
    ) -> Tensor:
        xh_prev = torch.cat([_masked(x, x_mask), _masked(h_prev, h_mask)], dim=-1)
        c0, h0 = torch.split(xh_prev.mm(self._W0), self.nhid, dim=-1)
        return h_prev + c0.sigmoid() * (h0.tanh() - h_prev)

    def _get_activation(self, name: str) -> Callable[[Tensor], Tensor]:
        # A method, as in the original, for those who override it.
        if name not in ACTIVATIONS:
            raise InputError(f"unknown activation {name!r}: known are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def cell(self, x: Tensor, h_prev: Tensor, x_mask: Tensor | None, h_mask: Tensor | None) -> Tensor:
        """One time step: ``x`` [B, ninp], ``h_prev`` [B, nhid], masks or None; returns [B, nhid]."""
        assert self.genotype is not None
        states = [self._compute_init_state(x, h_prev, x_mask, h_mask)]
        for W, (name, pred) in zip(self._Ws, self.genotype.recurrent, strict=True):
            s_prev = states[pred]
            c, h = torch.split(_masked(s_prev, h_mask).mm(W), self.nhid, dim=-1)
            states.append(s_prev + c.sigmoid() * (self._get_activation(name)(h) - s_prev))
        return torch.mean(torch.stack([states[i] for i in self.genotype.concat], -1), -1)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


BUILT_METHODS = {
    name: getattr(DARTSCell, name) for name in ("forward", "_compute_init_state", "_get_activation")
}


class RNNModel(nn.Module):
    """Embedding, recurrent cell and a decoder tied to the embedding.

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
        cell_cls: the cell's class; called with ``ninp, nhid, dropouth, dropoutx`` and the genotype, if any.
        genotype: the cell of a ``DARTSCell``; None for a class that needs none.

    Raises:
        InputError: feature counts that differ, or a genotype that does not fit.
    """

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
        cell_cls: Callable[..., nn.Module] = DARTSCell,
        genotype: Genotype | None = None,
    ) -> None:
        super().__init__()
        if not ninp == nhid == nhidlast:
            raise InputError(
                f"ninp, nhid and nhidlast must be equal (the decoder is tied), got {ninp}, {nhid}, {nhidlast}"
            )
        if cell_cls is DARTSCell and genotype is None:
            raise InputError("RNNModel needs a genotype, e.g. genotype=dartsfast.rnn.genotypes.DARTS_V2")
        self.lockdrop = LockedDropout()
        self.encoder = nn.Embedding(ntoken, ninp)
        given = () if genotype is None else (genotype,)
        self.rnns = nn.ModuleList([cell_cls(ninp, nhid, dropouth, dropoutx, *given)])
        self.decoder = nn.Linear(ninp, ntoken)
        self.decoder.weight = self.encoder.weight
        self.init_weights()
        self.ninp = ninp
        self.nhid = nhid
        self.nhidlast = nhidlast
        self.dropout = dropout
        self.dropouti = dropouti
        self.dropoute = dropoute
        self.ntoken = ntoken
        self.cell_cls = cell_cls

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        with self._tied():
            return super()._apply(fn, recurse)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As of any module; weights that were tied are tied afterwards, with ``assign=True`` too."""
        with self._tied():
            return super().load_state_dict(*args, **options)

    @contextmanager
    def _tied(self) -> Iterator[None]:
        # To or from the meta device, and by assignment, modules get new parameters: each its own.
        tied = self.decoder.weight is self.encoder.weight
        yield
        if tied:
            self.decoder.weight = self.encoder.weight

    def init_weights(self) -> None:
        """Draw the tied embedding from U(-0.04, 0.04); zero the decoder's bias."""
        nn.init.uniform_(self.encoder.weight, -INITRANGE, INITRANGE)
        nn.init.zeros_(self.decoder.bias)
        # The same tensor once more, as the original: a seed gives the weights and alphas it gave there.
        nn.init.uniform_(self.decoder.weight, -INITRANGE, INITRANGE)

    def forward(self, input: Tensor, hidden: list[Tensor], return_h: bool = False):
        """Map tokens int64 [T, B] and hidden states [[1, B, nhid]] to log-probabilities [T, B, ntoken].

        Returns ``(log_prob, hidden)``, with ``return_h`` also the raw and the dropped-out outputs of
        the cell, each a list of [T, B, nhid].
        """
        raw_output, new_hidden, raw_outputs = self._features(input, hidden)
        output = self.lockdrop(raw_output, self.dropout)
        logit = self._decode(output.view(-1, self.ninp))
        log_prob = F.log_softmax(logit, dim=-1).view(-1, input.size(1), self.ntoken)
        if return_h:
            return log_prob, new_hidden, raw_outputs, [output]
        return log_prob, new_hidden

    def _decode(self, rows: Tensor) -> Tensor:
        """Map [R, ninp] to logits [R, ntoken]."""
        return self.decoder(rows)

    def _features(self, input: Tensor, hidden: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the last cell's outputs [T, B, ninp], the new hidden states, and all cells' outputs."""
        check_range(input, self.ntoken, "token", "a vocabulary of {}: ids run from 0")
        emb = embedded_dropout(self.encoder, input, dropout=self.dropoute if self.training else 0)
        raw_output = self.lockdrop(emb, self.dropouti)
        new_hidden, raw_outputs = [], []
        for rnn, h in zip(self.rnns, hidden, strict=True):
            raw_output, new_h = rnn(raw_output, h)
            new_hidden.append(new_h)
            raw_outputs.append(raw_output)
        return raw_output, new_hidden, raw_outputs

    def init_hidden(self, bsz: int) -> list[Tensor]:
        """Return zeros, a list of one [1, bsz, nhid]."""
        return [self.encoder.weight.new_zeros(1, bsz, self.nhid)]
