"""The training of a found recurrent cell from scratch (paper A.4; the original's ``rnn/train.py``)."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast import ranks
from dartsfast.bilevel.flat import average_gradients_
from dartsfast.data import Corpus, absolute_text, resolve_corpus, text_fingerprint
from dartsfast.drawing import draw_genotype
from dartsfast.errors import DivergedError, InputError
from dartsfast.genotypes import RNN, AnyGenotype, resolve_genotype
from dartsfast.rnn.model import RNNModel, search_loss
from dartsfast.rnn.utils import get_batch, perplexity, text_loss
from dartsfast.runs.begin import begin
from dartsfast.runs.fit import match, match_optimizer
from dartsfast.runs.report import Picture
from dartsfast.runs.run import Iteration, Run
from dartsfast.train.config import TrainRNNConfig
from dartsfast.train.evaluate_rnn import TEST_BATCH_SIZE, best_weights, text_columns
from dartsfast.train.result import TrainResult, epochs
from dartsfast.train.weights import WEIGHTS, holding, save_weights

EVAL_BATCH_SIZE = 10
SHORTEST = 5  # time steps, where bptt allows as many
MOST_RETURNS = 10  # to one and the same epoch


class RNNTraining(Run):
    """A training between two iterations.

    Attributes:
        best: the epoch with the best validation, to which a training that diverges goes back: ``epoch``, how
            many are done at its end, its ``loss``, and the ``state_dict`` of model (the averaged weights
            where they are averaged) and optimizer, on the CPU.
        validations: losses of all epochs before weights are averaged.
        returns: how often the training has gone back to ``best``.
    """

    kind = "train-rnn"
    noun = "training"
    command = ("train", "rnn")
    unit = "rows of text"
    metrics = ("loss",)
    optimizer_names = ("optimizer",)
    own = ("hidden",)

    def __init__(self, config: TrainRNNConfig) -> None:
        super().__init__(config)
        self.cell = resolve_genotype(config.arch, RNN)
        corpus = resolve_corpus(config.data)
        self.fingerprint = text_fingerprint(corpus, tested=True)
        self._read(corpus)
        torch.manual_seed(config.seed)
        self.words = len(corpus.dictionary)
        model = RNNModel(
            self.words, config.emsize, config.nhid, config.nhidlast, config.dropout, config.dropouth,
            config.dropoutx, config.dropouti, config.dropoute, genotype=self.cell, backend=config.backend,
        )  # fmt: skip
        self.model = model.to(self.device)
        self.optimizer: torch.optim.Optimizer = self._new_optimizer(averaging=False)
        self.lengths = torch.Generator().manual_seed(config.seed)
        self.position = 0  # row of self.train
        self.hidden: Tensor | None = None  # [1, B, nhid], within an epoch
        self.best: dict[str, Any] | None = None
        self.validations: list[float] = []
        self.returns = 0
        self.work = len(self.train) - 2
        self.every = config.log_interval

    def _read(self, corpus: Corpus) -> None:
        config = self.config
        remedy = "a smaller --batch_size or "
        train = text_columns(config.data, corpus, "train", config.batch_size * ranks.size(), 3, remedy)
        self.train = ranks.columns(train).to(self.device)
        self.valid = text_columns(config.data, corpus, "valid", EVAL_BATCH_SIZE).to(self.device)
        self.tested = text_columns(config.data, corpus, "test", TEST_BATCH_SIZE).to(self.device)

    @staticmethod
    def absolute_data(data: str) -> str:
        """Return the option ``data`` such that it means the same in any working directory."""
        return absolute_text(data)

    @classmethod
    def settle(cls, config: TrainRNNConfig) -> TrainRNNConfig:
        """Return the options of a new run such that they mean the same in any working directory."""
        return dataclasses.replace(super().settle(config), arch=repr(resolve_genotype(config.arch, RNN)))

    def _new_optimizer(self, averaging: bool) -> torch.optim.Optimizer:
        weights, config = self.model.parameters(), self.config
        if averaging:
            return torch.optim.ASGD(weights, config.lr, t0=0, lambd=0.0, weight_decay=config.wdecay)
        return torch.optim.SGD(weights, config.lr, weight_decay=config.wdecay)

    @property
    def averaging(self) -> bool:
        """Whether the weights are averaged by now."""
        return isinstance(self.optimizer, torch.optim.ASGD)

    def iterations(self) -> Iterator[Iteration]:
        """Run what is left of the epoch, a step of the weights an iteration."""
        config, group = self.config, self.optimizer.param_groups[0]
        if self.hidden is None:
            (self.hidden,) = self.model.init_hidden(config.batch_size)
        self.model.train()
        while self.position < len(self.train) - 2:
            length = self._draw_length()
            x, y = get_batch(self.train, self.position, config, seq_len=length)
            group["lr"] = config.lr * length / config.bptt  # a longer text takes a longer step
            loss, norm, self.hidden = self.iteration(x, y, self.hidden)
            group["lr"] = config.lr
            self.step += 1
            self.position += length
            self.record(len(x), loss=loss)
            # It would be seen in the next loss, but for a checkpoint's sake not before.
            if not math.isfinite(norm):
                raise self.diverged(f"the gradient's norm is {norm}")
            yield Iteration(self.position, {"loss": self.mean("loss"), "ppl": perplexity(self.mean("loss"))})

    def _draw_length(self) -> int:
        """Draw the time steps of a batch."""
        bptt, most = self.config.bptt, self.config.bptt + self.config.max_seq_len_delta
        mean = bptt if torch.rand((), generator=self.lengths).item() < 0.95 else bptt / 2
        drawn = mean + 5 * torch.randn((), generator=self.lengths).item()
        return min(max(SHORTEST, int(drawn)), most)

    def iteration(self, x: Tensor, y: Tensor, hidden: Tensor) -> tuple[float, float, Tensor]:
        """Move the weights on tokens ``x`` [T, B] and those after them, ``small_batch_size`` columns at once.

        Returns the plain loss, the gradient's norm before it is clipped, and the hidden state after ``x``.
        """
        config = self.config
        small = config.batch_size if config.small_batch_size == -1 else config.small_batch_size
        share, total, after = small / config.batch_size, 0.0, []
        self.optimizer.zero_grad()
        for xs, ys, h in zip(x.split(small, 1), y.split(small, 1), hidden.split(small, 1), strict=True):
            loss, plain, (h_next,) = search_loss(self.model, [h], xs, ys, config.beta, config.alpha)
            (loss * share).backward()
            total += plain.item() * share
            after.append(h_next)
        average_gradients_(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        return total, norm.item(), torch.cat(after, 1)

    def finish_epoch(self) -> dict[str, Any]:
        """Validate, with averaged weights where they are averaged; after the last epoch test the best."""
        averaging, state = self.averaging, self.optimizer.state
        with contextlib.ExitStack() as stack:
            if averaging:
                stack.enter_context(holding(self.model, [state[p]["ax"] for p in self.model.parameters()]))
            loss = text_loss(self.model, self.valid, self.config, self.stop.check)
            if not math.isfinite(loss):
                raise self.diverged(f"valid_loss is {loss}")
            best = self._moment(loss) if self.best is None or loss < self.best["loss"] else self.best
        train_loss = self.mean("loss")
        row = {
            "lr": self.config.lr,
            "averaged": int(averaging),
            "train_loss": train_loss,
            "train_ppl": perplexity(train_loss),
            "valid_loss": loss,
            "valid_ppl": perplexity(loss),
        }
        if self.epoch + 1 == self.config.epochs:
            with holding(self.model, [best["model"][name].to(self.device) for name in self._names()]):
                tested = text_loss(self.model, self.tested, self.config, self.stop.check)
            row |= {"test_loss": tested, "test_ppl": perplexity(tested)}
        # Nothing has changed so far, if a signal has stopped us.
        if best is not self.best:
            self.best, self.returns = best, 0
        if not averaging:
            self._count(loss)
        self.position, self.hidden = 0, None
        return row

    def _names(self) -> list[str]:
        return [name for name, _ in self.model.named_parameters()]

    def _moment(self, loss: float) -> dict[str, Any]:
        return {
            "epoch": self.epoch + 1,
            "loss": loss,
            "model": _on_cpu(self.model.state_dict()),
            "optimizer": _on_cpu(self.optimizer.state_dict()),
        }

    def _count(self, loss: float) -> None:
        """Note the validation loss of an epoch; on the non-monotone trigger begin to average the weights."""
        earlier = self.validations[: -self.config.nonmono]
        if earlier and loss > min(earlier):
            self.optimizer = self._new_optimizer(averaging=True)
            self.say(
                f"validation in epoch {self.epoch + 1} is worse than the best more than "
                f"{self.config.nonmono} epochs before: the weights are averaged from here on"
            )
        self.validations.append(loss)

    def go_back(self, problem: DivergedError) -> int:
        """Return to the epoch with the best validation, as the original does.

        Random streams go on, so that other lengths and dropouts are drawn.

        Raises:
            DivergedError: there is none yet, or it was returned to too often.
        """
        if self.best is None:
            raise problem
        if self.returns == MOST_RETURNS:
            raise DivergedError(
                f"{problem.what}: the training has diverged again after it went back {MOST_RETURNS} times to "
                f"the end of epoch {self.best['epoch']}, its best. Start again with a lower --lr or --clip",
                problem.what,
            )
        self.returns += 1
        self.model.load_state_dict(self.best["model"])
        self._take_optimizer(self.best["optimizer"])
        self.position, self.hidden = 0, None
        return self.best["epoch"]

    def _take_optimizer(self, state: dict[str, Any]) -> None:
        self.optimizer = self._new_optimizer(_averages(state))
        self.optimizer.load_state_dict(copy.deepcopy(state))  # which keeps the tensors that it is given

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return that of the weights."""
        return {"optimizer": self.optimizer}

    def has_stepped(self, state: dict[str, Any], name: str) -> bool | None:
        """As of any run; but one that averages since the epoch before has not."""
        return None if self.averaging and not state["step"] else super().has_stepped(state, name)

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless this run, not begun yet, can continue from a checkpoint's ``state``."""
        self.optimizer = self._new_optimizer(_checked_averages("optimizer", state["optimizer"]))
        super().check_state(state)

    def extra_state(self) -> dict[str, Any]:
        """Return the place in the text, the hidden state there, the stream of lengths, and the best epoch."""
        return {
            "position": self.position,
            "hidden": None if self.hidden is None else self.hidden.cpu(),
            "lengths": self.lengths.get_state(),
            "best": self.best,
            "validations": self.validations,
            "returns": self.returns,
        }

    def begin_epoch_anew(self, state: dict[str, Any]) -> None:
        """As of any run; the hidden state begins with the text."""
        super().begin_epoch_anew(state)
        state["extra"] |= {"position": 0, "hidden": None}

    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless step, count, the place in the text and the best epoch go together."""
        step, extra = state["step"], state["extra"]
        hidden = self.model.init_hidden(self.config.batch_size)[0] if step else None
        best: Any = None
        if state["epoch"]:
            best = {"epoch": 0, "loss": 0.0, "model": self.model.state_dict(), "optimizer": {}}
        match("extra", {**self.extra_state(), "hidden": hidden, "best": best}, extra)
        match("extra.validations", [0.0] * len(extra["validations"]), extra["validations"])
        if best is not None:
            self._check_best(extra["best"], state["epoch"])
        if not 0 <= extra["returns"] <= MOST_RETURNS:
            raise InputError(f"extra.returns is {extra['returns']}")
        position, most = extra["position"], self.config.bptt + self.config.max_seq_len_delta
        if not step * min(SHORTEST, most) <= position <= min(step * most, len(self.train) + most):
            raise InputError(f"step is {step} at row {position}, in an epoch of {len(self.train)} rows")
        if state["count"] > position or bool(step) != bool(state["count"]):
            raise InputError(f"count is {state['count']:g} after {step} steps, at row {position}")

    def _check_best(self, best: dict[str, Any], epoch: int) -> None:
        if not 1 <= best["epoch"] <= epoch:
            raise InputError(f"extra.best.epoch is {best['epoch']}, and {epoch} are done")
        place = "extra.best.optimizer"
        fresh = self._new_optimizer(_checked_averages(place, best["optimizer"]))
        match_optimizer(place, fresh, best["optimizer"], begun=True)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's ``state``."""
        self.optimizer = self._new_optimizer(_averages(state["optimizer"]))
        super().load_state(state)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""
        self.position, self.best = state["position"], state["best"]
        self.hidden = None if state["hidden"] is None else state["hidden"].to(self.device)
        self.lengths.set_state(state["lengths"])
        self.validations, self.returns = state["validations"], state["returns"]

    def genotype(self) -> AnyGenotype:
        """Return the cell that is trained."""
        return self.cell

    def pictures(self) -> dict[str, Picture]:
        """Return the cell."""
        return {"cell": Picture(None, lambda path: draw_genotype(self.cell, path))}

    def introduction(self) -> str:
        """Say what is trained here, on what and with how much."""
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        return (
            f"training of a recurrent cell of {self.config.nhid} units, vocabulary {self.words:,}, on "
            f"{self.device}, backend {self.model.backend}, {parameters:.2f} M parameters"
        )

    def result(self, out: Path, checkpoint: Path) -> TrainResult:
        """Write the best weights and return where everything lies."""
        assert self.best is not None
        save_weights(out, self.best["model"])
        return _result(self.cell, self.history, out, checkpoint)

    @classmethod
    def finished(cls, out: Path, checkpoint: Path, state: dict[str, Any]) -> TrainResult:
        """Return the result of a training that is over; its data need not be there any more."""
        if not (out / WEIGHTS).exists():  # it was stopped after its last checkpoint
            save_weights(out, best_weights(state) or {})
        return _result(resolve_genotype(state["config"]["arch"], RNN), state["history"], out, checkpoint)


def _result(cell: AnyGenotype, history: list[dict[str, Any]], out: Path, checkpoint: Path) -> TrainResult:
    last, best = history[-1], min(history, key=lambda row: row["valid_loss"])
    lesson = (
        f"after {epochs(last['epoch'])}: test perplexity {last['test_ppl']:.2f}, with the weights of epoch "
        f"{best['epoch']}, whose validation perplexity {best['valid_ppl']:.2f} is the best"
    )
    return TrainResult(cell, history, out, checkpoint, out / WEIGHTS, lesson)


def _averages(optimizer: dict[str, Any]) -> bool:
    """Whether the state of an optimiser is that of averaged SGD."""
    return "t0" in optimizer["param_groups"][0]


def _checked_averages(place: str, optimizer: Any) -> bool:
    match(place, {"state": {}, "param_groups": [{}]}, optimizer)
    return _averages(optimizer)


def _on_cpu(state: Any) -> Any:
    """Return a copy of nested values with all tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state


def train_rnn(config: TrainRNNConfig, *, resume: str | Path | None = None) -> TrainResult:
    """Train a found recurrent cell from scratch, validating after every epoch; test the best at the end.

    Args:
        config: options, the original's names and defaults.
        resume: as in :func:`dartsfast.search.search_cnn`.

    Returns:
        The history, and where everything lies.

    Raises:
        InputError, DivergedError, RunStopped, OSError: as :func:`dartsfast.search.search_cnn`.
    """
    return begin(RNNTraining, config, resume)
