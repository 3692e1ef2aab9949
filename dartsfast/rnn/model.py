"""The recurrent cell of a genotype and the language model around it (the original's ``model.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.backends import resolve_backend
from dartsfast.errors import InputError, check_range
from dartsfast.fused.linear import linear
from dartsfast.fused.loss import linear_cross_entropy, locked_cross_entropy, slowness
from dartsfast.genotypes import RNN, as_genotype
from dartsfast.modules.plain import is_plain
from dartsfast.rnn.genotypes import STEPS, Genotype
from dartsfast.rnn.utils import ACTIVATIONS, LockedDropout, embedded_dropout, mask2d, repackage_hidden

INITRANGE = 0.04
# Rows of logits that the fused loss holds at a time: [144, vocabulary], 4 batch elements of 35 time steps.
LOSS_CHUNK = 144
# The target of F.nll_loss for what is no word, such as padding.
IGNORED = -100

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
        return states, states[-1:].clone()  # who keeps the last state keeps not all of them

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


def is_padded(target: Tensor) -> bool:
    """Whether the loss leaves some of ``target`` out; on a GPU this would wait for the device."""
    return not target.is_meta and bool((target == IGNORED).any())


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
        backend: what computes the decoder's loss, and search cells (see :mod:`dartsfast.backends`); the cell
            of a genotype is stock PyTorch on each.

    Raises:
        InputError: feature counts that differ, a genotype that does not fit, or unknown backend.
    """

    _backend = "reference"  # of models that were pickled as the original's

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
        *,
        backend: str = "reference",
    ) -> None:
        super().__init__()
        if not ninp == nhid == nhidlast:
            raise InputError(
                f"ninp, nhid and nhidlast must be equal (the decoder is tied), got {ninp}, {nhid}, {nhidlast}"
            )
        if cell_cls is DARTSCell and genotype is None:
            raise InputError("RNNModel needs a genotype, e.g. genotype=dartsfast.rnn.genotypes.DARTS_V2")
        resolve_backend(backend)
        if backend != "reference":  # else the attributes are those of the original and no others
            self._backend = backend
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
        try:
            yield
        finally:  # those that an error left, too
            if tied:
                self.decoder.weight = self.encoder.weight

    def init_weights(self) -> None:
        """Draw the tied embedding from U(-0.04, 0.04); zero the decoder's bias."""
        nn.init.uniform_(self.encoder.weight, -INITRANGE, INITRANGE)
        nn.init.zeros_(self.decoder.bias)
        # The same tensor once more, as the original: a seed gives the weights and alphas it gave there.
        nn.init.uniform_(self.decoder.weight, -INITRANGE, INITRANGE)

    @property
    def backend(self) -> str:
        """The backend that computes where the network lies now."""
        return resolve_backend(self._backend, self.encoder.weight.device, self.encoder.weight.dtype)

    def forward(
        self, input: Tensor, hidden: list[Tensor], return_h: bool = False, target: Tensor | None = None
    ):
        """Map tokens and hidden states to log-probabilities, or with ``target`` to the loss.

        Args:
            input: tokens [T, B], int64.
            hidden: states before ``input`` [[1, B, nhid]], as of :meth:`init_hidden`.
            return_h: return the cell's outputs too.
            target: the tokens after ``input``, [T, B] or [T * B]; -100 is left out, as by ``F.nll_loss``,
                whose mean over none is NaN.

        Returns:
            Without target the log-probabilities [T, B, ntoken] and the hidden states after ``input``; with
            ``return_h`` also the raw and the dropped-out outputs of the cell, each a list of [T, B, nhid].
            With it the mean negative log-likelihood, for which fused backends never hold [T * B, ntoken]
            logits; the hidden states; the raw outputs; with ``return_h`` also the dropped-out ones.

        Raises:
            InputError: a token or target outside the vocabulary.
        """
        if target is not None:
            known = target.masked_fill(target == IGNORED, 0)
            check_range(known, self.ntoken, "target", "a vocabulary of {}: ids run from 0")
        raw_output, new_hidden, raw_outputs = self._features(input, hidden)
        if target is not None and not return_h:
            loss = self._decoded_loss(raw_output, target.reshape(input.shape))
            return loss, new_hidden, raw_outputs
        output = self.lockdrop(raw_output, self.dropout)
        if target is not None:
            return self._loss_of(output, target.reshape(input.shape)), new_hidden, raw_outputs, [output]
        logit = self._decode(output.view(-1, self.ninp))
        log_prob = F.log_softmax(logit, dim=-1).view(-1, input.size(1), self.ntoken)
        if return_h:
            return log_prob, new_hidden, raw_outputs, [output]
        return log_prob, new_hidden

    def _decode(self, rows: Tensor) -> Tensor:
        """Map [R, ninp] to logits [R, ntoken]."""
        return linear(self.decoder, rows) if self.backend == "cpu" else self.decoder(rows)

    def _decoded_loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``target`` [T, B] given the cell's outputs ``x`` [T, B, nhid]."""
        decoder = self.decoder
        locked = self.backend == "cpu" and is_plain(decoder) and is_plain(self.lockdrop, LockedDropout)
        mask = self.lockdrop.mask(x, self.dropout) if locked and not is_padded(target) else None
        if mask is not None:
            return locked_cross_entropy(x, mask[0], decoder.weight, decoder.bias, target, LOSS_CHUNK)
        return self._loss_of(self.lockdrop(x, self.dropout), target)

    def _loss_of(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``target`` [T, B] given the cell's outputs after dropout, [T, B, nhid]."""
        decoder, rows, labels = self.decoder, output.flatten(0, 1), target.flatten()
        if self.backend == "reference" or not is_plain(decoder):
            return F.nll_loss(F.log_softmax(decoder(rows), -1), labels)
        if self.backend == "cpu":  # whose kernels take no ignored targets
            if is_padded(target):
                known = labels != IGNORED
                rows, labels = rows[known], labels[known]
                if not len(rows):  # NaN, with gradients of zero
                    return F.cross_entropy(decoder(rows), labels)
            return linear_cross_entropy(rows, decoder.weight, decoder.bias, labels, LOSS_CHUNK)
        if not hasattr(F, "linear_cross_entropy"):  # torch before 2.13
            return linear_cross_entropy(rows, decoder.weight, decoder.bias, labels, LOSS_CHUNK, IGNORED)
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=LOSS_CHUNK)
        return F.linear_cross_entropy(rows, decoder.weight, labels, linear_bias=decoder.bias, options=options)

    def _loss(self, hidden: list[Tensor], input: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        if "forward" in vars(self) or type(self).forward is not _FORWARD:
            # A script's own takes no target, as in the original.
            log_prob, hidden_next = self(input, hidden, return_h=False)
            return F.nll_loss(log_prob.flatten(0, 1), target.flatten()), hidden_next
        return self(input, hidden, target=target)[:2]

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


_FORWARD = RNNModel.forward


def search_loss(
    model: nn.Module,
    hidden: Sequence[Tensor],
    input: Tensor,
    target: Tensor,
    beta: float,
    alpha: float = 0.0,
) -> tuple[Tensor, Tensor, Any]:
    """Return the loss of a weight step, the plain loss in it, and the detached hidden states.

    Args:
        model: a search model, or that of a found cell.
        hidden: hidden states [[1, B, nhid]] before ``input``.
        input: tokens [T, B].
        target: the tokens after them.
        beta: factor of the slowness term.
        alpha: factor of the mean square of the outputs after dropout.
    """
    raw_loss, hidden_next, raw_outputs, *dropped = model(input, hidden, alpha > 0, target=target)
    outputs = raw_outputs[-1]  # [T, B, nhid]
    loss = raw_loss
    if alpha > 0:
        loss = loss + alpha * dropped[0][-1].pow(2).mean()
    if len(outputs) > 1:  # outputs should change little from one step to the next
        stock = getattr(model, "backend", "reference") == "reference"
        loss = loss + beta * ((outputs[1:] - outputs[:-1]).pow(2).mean() if stock else slowness(outputs))
    return loss, raw_loss, repackage_hidden(hidden_next)
