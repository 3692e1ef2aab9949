"""The RNN search (paper section 3.1.2; the original's ``rnn/train_search.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast import ranks
from dartsfast.bilevel.flat import average_gradients_
from dartsfast.data import absolute_text, resolve_corpus, text_fingerprint
from dartsfast.errors import InputError
from dartsfast.modules.sync_norm import synchronise_
from dartsfast.names import MEMORY_MODES
from dartsfast.rnn.architect import Architect
from dartsfast.rnn.budget import fit
from dartsfast.rnn.genotypes import PRIMITIVES, STEPS
from dartsfast.rnn.model import search_loss
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.rnn.utils import batchify, get_batch, perplexity, text_loss
from dartsfast.runs.begin import begin
from dartsfast.runs.fit import match
from dartsfast.runs.run import Iteration
from dartsfast.search.alphas import AlphaTable
from dartsfast.search.config import MIN_BATCH_SIZE, RNNConfig
from dartsfast.search.lesson import perplexity_lesson
from dartsfast.search.search import Search, SearchResult
from dartsfast.sizes import in_bytes

EVAL_BATCH_SIZE = 10


class RNNSearch(Search):
    """An RNN search between two iterations."""

    kind = "rnn"
    command = ("search", "rnn")
    unit = "rows of text"
    metrics = ("loss",)
    own = ("hidden", "hidden_valid")

    def __init__(self, config: RNNConfig) -> None:
        super().__init__(config)
        corpus = resolve_corpus(config.data)
        self.fingerprint = text_fingerprint(corpus)
        whole = config.batch_size * ranks.size()
        self.train = ranks.columns(self._columns(corpus.train, whole, "train"))
        self.valid = ranks.columns(self._columns(corpus.valid, whole, "valid"))
        self.check = self._columns(corpus.valid, EVAL_BATCH_SIZE, "valid")
        self.words = len(corpus.dictionary)
        torch.manual_seed(config.seed)
        model = RNNModelSearch(
            self.words,
            config.emsize,
            config.nhid,
            config.nhidlast,
            config.dropout,
            config.dropouth,
            config.dropoutx,
            config.dropouti,
            config.dropoute,
            backend=config.backend,
            memory=config.memory,
        )
        if config.sync_bn:
            synchronise_(model)
        self.model = model.to(self.device)
        if config.memory not in MEMORY_MODES:
            model.fit_memory((config.bptt, config.batch_size), config.order)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, weight_decay=config.wdecay)
        self.architect = Architect(model, config, preset=config.preset)
        self.lengths = torch.Generator().manual_seed(config.seed)  # draws the half-length batches
        self.position = 0  # row of self.train
        self.hidden: Any = None
        self.hidden_valid: Any = None
        self.work = len(self.train) - 2
        self.every = config.log_interval

    @staticmethod
    def absolute_data(data: str) -> str:
        """Return the option ``data`` such that it means the same in any working directory."""
        return absolute_text(data)

    def _columns(self, tokens: Tensor, columns: int, part: str) -> Tensor:
        # A batch needs a row to read and one to predict, and train() stops a row early.
        if tokens.numel() < 3 * columns:
            most = tokens.numel() // 3 // ranks.size()
            smaller = f"a batch_size of at most {most}, or " if most >= MIN_BATCH_SIZE else ""
            if part == "valid" and tokens.numel() // 3 < EVAL_BATCH_SIZE:  # which no batch_size changes
                columns, smaller = max(columns, EVAL_BATCH_SIZE), ""
            raise InputError(
                f"{self.config.data}: the {part} text has {tokens.numel()} tokens, too few for {columns} "
                f"columns of 3: use {smaller}more text, at least {3 * columns} tokens"
            )
        return batchify(tokens, columns).to(self.device)

    def iterations(self) -> Iterator[Iteration]:
        """Run what is left of the epoch: an alpha step and a weight step an iteration."""
        config, model = self.config, self.model
        if self.step == 0:
            self.position = 0
            self.hidden = model.init_hidden(config.batch_size)
            self.hidden_valid = model.init_hidden(config.batch_size)
        model.train()
        while self.position < len(self.train) - 2:
            full = torch.rand((), generator=self.lengths).item() < 0.95
            seq_len = config.bptt if full else max(config.bptt // 2, 1)
            # A shorter batch takes a shorter step, in the weights and in the virtual step.
            self.optimizer.param_groups[0]["lr"] = lr = config.lr * seq_len / config.bptt
            x, y = get_batch(self.train, self.position, config, seq_len=seq_len)
            xv, yv = get_batch(self.valid, self.position % (len(self.valid) - 1), config)
            before = *self.hidden, *self.hidden_valid
            raw_loss, hidden, hidden_valid = self.run_iteration(x, y, xv, yv, *before, numbers=(lr,))
            # Copies: a recording writes its own again in the next iteration.
            self.hidden, self.hidden_valid = (hidden.clone(),), (hidden_valid.clone(),)
            self.optimizer.param_groups[0]["lr"] = config.lr
            self.step += 1
            self.position += seq_len
            self.record(len(x), loss=raw_loss.item())
            shown = {"loss": self.mean("loss"), "ppl": perplexity(self.mean("loss"))}
            yield Iteration(self.position, shown)

    def iteration(
        self, x: Tensor, y: Tensor, xv: Tensor, yv: Tensor, hidden: Tensor, hidden_valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Move the alphas on tokens ``xv`` [T, B] and those after them, then the weights on ``x`` and ``y``.

        Returns the plain loss [] of the weight step, and both hidden states [1, B, nhid] after the tokens.
        """
        config, model = self.config, self.model
        self.optimizer.zero_grad()  # as large as the weights, and of no use to the alphas' step
        (hidden_valid,), _ = self.architect.step(
            [hidden], x, y, [hidden_valid], xv, yv, self.optimizer, config.order == 2
        )
        loss, raw_loss, (hidden,) = search_loss(model, [hidden], x, y, config.beta)
        loss.backward()
        average_gradients_(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        self.optimizer.step()
        return raw_loss.detach(), hidden, hidden_valid.detach()

    def finish_epoch(self) -> dict[str, Any]:
        """Validate on the alphas' text."""
        train_loss = self.mean("loss")
        valid_loss = text_loss(self.model, self.check, self.config, self.stop.check)
        return {
            "lr": self.config.lr,
            "train_loss": train_loss,
            "train_ppl": perplexity(train_loss),
            "valid_loss": valid_loss,
            "valid_ppl": perplexity(valid_loss),
        }

    def smaller(self) -> tuple[str, list[str]]:
        """Return how many time steps an iteration could keep in what the device has free now."""
        if self.model.backend == "reference":
            return "To compute time steps again takes the least", ["--memory", "recompute"]
        text = self.config.bptt, self.config.batch_size
        try:
            found = fit(self.model, text, in_bytes("90%", self.device), self.config.order)
        except InputError as error:
            return f"Nothing fits: {error}", []
        return f"What is free would do for this: {found}", ["--memory", f"{found.peak}B"]

    def introduction(self) -> str:
        """Say what is searched here, by what, on what and with how much, and how a memory budget is kept."""
        fits = [f"; memory {self.config.memory}: {fit}" for fit in self.model._fits]
        return super().introduction() + "".join(fits)

    def extra_state(self) -> dict[str, Any]:
        """Return the place in the text, the hidden states there, and the stream of lengths."""
        return {
            "position": self.position,
            "hidden": None if self.hidden is None else [h.cpu() for h in self.hidden],
            "hidden_valid": None if self.hidden_valid is None else [h.cpu() for h in self.hidden_valid],
            "lengths": self.lengths.get_state(),
        }

    def begin_epoch_anew(self, state: dict[str, Any]) -> None:
        """As of any run; hidden states begin with the text."""
        super().begin_epoch_anew(state)
        state["extra"]["position"] = 0
        if not state["epoch"]:
            state["extra"] |= {"hidden": None, "hidden_valid": None}

    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless step, count and the place in the text go together."""
        step, begun = state["step"], state["epoch"] + state["step"] > 0
        hidden = list(self.model.init_hidden(self.config.batch_size)) if begun else None
        match("extra", {**self.extra_state(), "hidden": hidden, "hidden_valid": hidden}, state["extra"])
        position, bptt = state["extra"]["position"], self.config.bptt
        if position < 0 or state["count"] > max(position, 0):
            raise InputError(f"position is {position} after {state['count']:g} rows")
        if step and not step * max(bptt // 2, 1) <= position <= min(step * bptt, len(self.train) + bptt):
            raise InputError(f"step is {step} at row {position}, in an epoch of {len(self.train)} rows")
        if bool(step) != bool(state["count"]):
            raise InputError(f"count is {state['count']} after {step} steps")

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""
        self.position = state["position"]
        for name in ("hidden", "hidden_valid"):
            kept = state[name]
            setattr(self, name, None if kept is None else [h.to(self.device) for h in kept])
        self.lengths.set_state(state["lengths"])

    @classmethod
    def alpha_shapes(cls, config: Any) -> dict[str, Sequence[int]]:
        """Return the shapes of the alphas of a search by their names in the model's state_dict."""
        return {"weights": (STEPS * (STEPS + 1) // 2, len(PRIMITIVES))}

    def alpha_tables(self) -> dict[str, AlphaTable]:
        """Return the alphas of the cell."""
        edges = [f"{j}→{i + 1}" for i in range(STEPS) for j in range(i + 1)]
        kept = self.model.genotype().recurrent
        return {"weights": AlphaTable(self.model.weights, PRIMITIVES, edges, kept)}

    def learned(self) -> str:
        """Give the perplexity on the alphas' text, and that of guessing."""
        return perplexity_lesson(self.history[-1]["valid_ppl"], self.words)


def search_rnn(config: RNNConfig, *, resume: str | Path | None = None) -> SearchResult:
    """Search a recurrent cell; arguments, result and errors as :func:`dartsfast.search.search_cnn`."""
    return begin(RNNSearch, config, resume)
