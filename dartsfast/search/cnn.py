"""The CNN search (paper section 3.1.1; the original's ``cnn/train_search.py``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast import ranks
from dartsfast.bilevel.flat import average_gradients_
from dartsfast.bilevel.guard import preserved
from dartsfast.cnn.accumulate import backward
from dartsfast.cnn.architect import Architect
from dartsfast.cnn.genotypes import PRIMITIVES
from dartsfast.cnn.spaces import SPACES, Space
from dartsfast.cnn.utils import accuracy
from dartsfast.data import (
    Batches,
    ImageSource,
    ImageTask,
    absolute_images,
    image_fingerprint,
    image_sides,
    limited,
    load_images,
)
from dartsfast.errors import InputError
from dartsfast.fused import fit
from dartsfast.methods import fit_network, new_network, penalty
from dartsfast.methods.eigenvalue import WINDOW, monitored, stops
from dartsfast.methods.p_darts import KEPT, narrowed
from dartsfast.methods.perturbation import CosineThenTuning, Selection
from dartsfast.methods.smooth_darts import radius, smoothed
from dartsfast.methods.stops import Earlier, skip_connections, stopped
from dartsfast.modules.sync_norm import synchronise_
from dartsfast.runs.begin import begin
from dartsfast.runs.fit import check_cosine, check_images, match, match_keys
from dartsfast.runs.report import Report
from dartsfast.runs.run import Iteration
from dartsfast.search.alphas import AlphaTable, cnn_tables
from dartsfast.search.config import DECISIONS, CNNConfig
from dartsfast.search.lesson import accuracy_lesson
from dartsfast.search.search import Search, SearchResult
from dartsfast.sizes import in_bytes


class CNNSearch(Search):
    """A CNN search between two iterations."""

    kind = "cnn"
    command = ("search", "cnn")
    unit = "images"
    metrics = ("loss", "acc")
    scheduled = ("lr",)

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config)
        task = load_images(
            config.data,
            train_portion=config.train_portion,
            download=config.download,
            image_size=config.image_size,
        )
        # Of a pass; sides that no network fits are refused here.
        self.images = config.batch_size // config.parts, 3, *image_sides(task)
        self.fingerprint = image_fingerprint(task)
        self.classes = len(task.classes)
        self.stage, self.space = 0, SPACES[config.space]
        torch.manual_seed(config.seed)
        self._build()
        self.earlier_alphas = Earlier()
        self.train = self._stream(task.train, task, "train")
        self.valid = self._stream(task.valid, task, "valid")
        self.check = self._stream(task.valid, task, "check", augment=False)
        self.work = len(self.train)
        self.every = config.report_freq

    def _build(self) -> None:
        """Build the network of the stage, and what moves it."""
        config = self.config
        model = new_network(config, self.classes, self.space, self.stage)
        if config.sync_bn:
            synchronise_(model)
        self.model = model.to(self.device)
        fit_network(config, model, self.images)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.selection = Selection(model, config.seed) if config.select == "perturbation" else None
        schedule = CosineThenTuning if self.selection else torch.optim.lr_scheduler.CosineAnnealingLR
        self.scheduler = schedule(self.optimizer, config.stage_epochs, eta_min=config.learning_rate_min)
        options = {"preset": config.preset, "penalty": lambda: penalty(config, model, self.epoch)}
        self.architect = Architect(model, config, **options, accumulate=config.parts)
        self.captured = None

    def prepare_epoch(self) -> None:
        """Begin the next stage of P-DARTS where it is due."""
        if self.config.method == "p-darts" and self.epoch // self.config.stage_epochs > self.stage:
            keep = KEPT[self.stage + 1]
            self._to_stage(self.stage + 1, narrowed(self.model.arch_parameters(), self.model._space, keep))
            self.say(f"stage {self.stage + 1}: {len(self.model.cells)} cells, {keep} operations an edge")

    def _to_stage(self, stage: int, space: Space) -> None:
        self.stage, self.space = stage, space
        with torch.random.fork_rng(devices=[]):  # the same weights in every process
            torch.manual_seed(self.config.seed + stage)
            self._build()

    def take_form(self, state: dict[str, Any]) -> None:
        """Have the networks of the stage that ``state`` is of; InputError where it does not say so."""
        if self.config.method != "p-darts":
            return
        match_keys("extra", set(self.extra_state()), state["extra"])
        stage, rows = state["extra"]["stage"], state["extra"]["space"]
        match("extra.stage", 0, stage)
        if stage not in range(len(KEPT)) or state["epoch"] < stage * self.config.stage_epochs:
            raise InputError(f"extra.stage is {stage} after {state['epoch']} epochs")
        match("extra.space", [[[""] * KEPT[stage]] * len(self.model.alphas_normal)] * 2, rows)
        self._to_stage(stage, Space(*rows))

    @classmethod
    def alpha_shapes(cls, config: Any) -> dict[str, Sequence[int]]:
        """Return the shapes of the alphas of a search by their names in the model's state_dict."""
        with torch.device("meta"):  # they depend neither on the network's width nor on its depth
            small = {"init_channels": config.pc_share, "layers": 1, "stage_cells": 1}
            small["storage_dtype"] = "float32"
            last = Space(*[PRIMITIVES[: KEPT[-1]]] * 2)  # of P-DARTS
            model = new_network(SimpleNamespace(**{**vars(config), **small}), 1, last)
        return {name: getattr(model, name).shape for name in model._arch_names}

    @staticmethod
    def absolute_data(data: str) -> str:
        """Return the option ``data`` such that it means the same in any working directory."""
        return absolute_images(data)

    def _stream(self, source: ImageSource, task: ImageTask, name: str, augment: bool = True) -> Batches:
        return Batches(
            limited(source, self.config.max_images),
            self.config.batch_size,
            mean=task.mean,
            std=task.std,
            seed=self.config.seed,
            stream=name,
            augment=augment,
            cutout_length=self.config.cutout_length if augment and self.config.cutout else 0,
            shuffle=augment,
            device=self.device,
            part=(ranks.rank(), ranks.size()),
        )

    def _valid_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = self.epoch * len(self.train) + self.step
        if self.config.compat_valid_iter:
            # The original takes next(iter(valid_queue)): the first batch of a new shuffle every time.
            for position in itertools.count(start):
                yield self.valid.batch(position, 0)
        first, index = divmod(start, len(self.valid))
        for pass_ in itertools.count(first):
            yield from self.valid.iterate(pass_, index)
            index = 0

    def _stage_epoch(self, epoch: int) -> int:
        return epoch - self.stage * self.config.stage_epochs

    def iterations(self) -> Iterator[Iteration]:
        """Run what is left of the epoch: an alpha step and a weight step an iteration."""
        lr = float(self.scheduler.get_last_lr()[0])
        self.model.train()
        self.model.begin_epoch(self._stage_epoch(self.epoch), self.config.stage_epochs)
        batches = zip(self.train.iterate(self.epoch, self.step), self._valid_batches(), strict=False)
        for (x, y), (xv, yv) in batches:
            logits, loss = self.run_iteration(x, y, xv, yv, numbers=(lr, float(self.epoch)))
            self.step += 1
            (top1,) = accuracy(logits, y)
            self.record(len(y) * ranks.size(), loss=loss.item(), acc=top1.item())
            yield Iteration(self.step, {"loss": self.mean("loss"), "acc": self.mean("acc")})

    def iteration(self, x: Tensor, y: Tensor, xv: Tensor, yv: Tensor) -> tuple[Tensor, Tensor]:
        """Move the alphas on (xv, yv), then the weights on (x, y); return logits [N, classes] and loss [].

        While the weights warm up the alphas stay.
        """
        config, model = self.config, self.model
        lr = self.scheduler.get_last_lr()[0]
        self.optimizer.zero_grad()  # as large as the weights, and of no use to the alphas' step
        if self._stage_epoch(self.epoch) >= config.warmup_epochs:
            self.architect.step(x, y, xv, yv, lr, self.optimizer, unrolled=config.order == 2)
        epoch = min(self.epoch, config.epochs)  # there may be some after those of the search
        epsilon = radius(config.smooth, epoch, config.epochs) if config.smooth else 0.0
        with smoothed(model, epsilon, (x, y) if config.smooth_by == "adversary" else None):
            logits, loss = backward(model, x, y, config.parts)
        average_gradients_(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        self.optimizer.step()
        return logits, loss

    def has_stepped(self, state: dict[str, Any], name: str) -> bool | None:
        """Say whether an optimiser of ``state`` has taken steps; None: perhaps."""
        warm = self._stage_epoch(state["epoch"]) - self.config.warmup_epochs
        tunes_next = self.selection and (state["epoch"], state["step"]) == (self.config.epochs, 0)
        if name == "optimizer" and tunes_next:
            return False if self.earlier is None else None
        if name == "arch_optimizer" and (warm < 0 or (warm == 0 and not state["step"])):
            return False if self.earlier is None else None
        return super().has_stepped(state, name)

    def finish_epoch(self) -> dict[str, Any]:
        """Validate on the alphas' half, un-augmented, and move the cosine schedule on."""
        lr = self.scheduler.get_last_lr()[0]
        waited = self.train.waited + self.valid.waited
        self.train.waited = self.valid.waited = 0.0
        valid_loss, valid_acc = self._validate()
        if self.selection and self.epoch + 1 >= self.config.epochs:
            self._select()
        self.scheduler.step()
        row = {
            "lr": lr,
            "train_loss": self.mean("loss"),
            "train_acc": self.mean("acc"),
            "valid_loss": valid_loss,
            "valid_acc": valid_acc,
            "loader_share": waited / max(self.seconds, 1e-9),
        }
        if self.config.most_skips:
            row["skips"] = skip_connections(self.model.genotype().normal)
        if self.config.watches_eigenvalue:
            row["eigenvalue"] = self._eigenvalue()
        self._see_whether_it_stops([*self.history, row])
        return row

    def _select(self) -> None:
        """Decide what is due after this epoch; the first time, tuning begins with fresh momentum."""
        assert self.selection is not None
        tuned = self.epoch + 1 - self.config.epochs
        if tuned % self.config.select_epochs == 0:
            self.selection.decide_(self.model, lambda: self._validate(as_trained=True)[1])
            self.say(f"{self.selection.decisions} of {DECISIONS} decisions are made: {self.genotype()}")
        if not tuned:
            self.optimizer.state.clear()

    def _eigenvalue(self) -> float:
        """Return the largest eigenvalue of the validation loss of one batch, of several ranks the mean."""
        (total,) = ranks.totals(monitored(self.model, *self.valid.batch(self.epoch, 0)))
        return total / ranks.size()

    def _see_whether_it_stops(self, history: list[dict[str, Any]]) -> None:
        """Say where the eigenvalue has grown or the search stops, and go back to the alphas of its cell."""
        config, before = self.config, self.epoch + 1 - WINDOW
        ends = stopped(config, history)
        if config.watches_eigenvalue and stops([row["eigenvalue"] for row in history]):
            who = "the search" if ends else "RobustDARTS"
            self.say(
                f"the largest eigenvalue has grown by a third in {WINDOW} epochs: {who} stops here, "
                f"with the cell of epoch {before}"
            )
        if config.stop != "eigenvalue":
            if ends:
                skips = history[-1]["skips"]
                self.say(f"the normal cell has {skips} skip connections: the search stops here")
            return
        if ends:
            self.earlier_alphas.put_back_(self.model.arch_parameters())
        self.earlier_alphas.keep(self.model.arch_parameters())

    @classmethod
    def is_over(cls, config: Any, history: list[dict[str, Any]]) -> bool:
        """Whether all epochs are done, or the search has stopped; InputError: its rows do not say."""
        return super().is_over(config, history) or stopped(config, history)

    def smaller(self) -> tuple[str, list[str]]:
        """Return how cells would have to be kept so that an iteration fits what the device has free now."""
        if self.config.space == "nasbench201":
            return "Recomputing takes the least", ["--memory", "recompute"]
        if self.model.backend == "reference":
            return "Checkpointing by cell takes the least", ["--memory", "cell"]
        try:
            free, passes = in_bytes("90%", self.device), (self.config.order, self.config.parts)
            found = fit(self.model, self.images, free, *passes)
        except InputError as error:
            return f"Nothing fits: {error}", []
        return f"What is free would do for this: {found}", ["--memory", f"{found.peak}B"]

    def introduction(self) -> str:
        """Say what is searched here, by what, on what and with how much, and how a memory budget is kept."""
        method = f" by {self.config.method}" if self.config.method != "darts" else ""
        space = f" in space {self.config.space}" if self.config.space != "darts" else ""
        parts = [f"; {self.config.plan}: {fit}" for fit in self.model._fits]
        if self.selection:
            search, tuning = self.config.counted(self.config.epochs), self.config.tuning_epochs
            parts.append(f"; {search} of search, then {tuning} of tuning between {DECISIONS} decisions")
        return super().introduction().replace("search", f"search{method}{space}", 1) + "".join(parts)

    def introduce(self, report: Report, out: Path) -> None:
        """Say what runs, on what data, where, and from where on, and what no kernels serve."""
        super().introduce(report, out)
        if self.config.space == "s4" and self.model.backend != "reference":
            report.say("the operation noise runs as an ordinary module, not on kernels")

    @torch.no_grad()
    def _validate(self, as_trained: bool = False) -> tuple[float, float]:
        """Return loss and accuracy, in percent, on the alphas' half; ``as_trained``: norms of the batch."""
        with preserved(list(self.model.buffers())) if as_trained else nullcontext():
            self.model.train(as_trained)
            return self._measured()

    def _measured(self) -> tuple[float, float]:
        loss = correct = count = 0.0
        for x, y in self.check.iterate(0):
            self.stop.check()
            if not len(y):  # the last batch has fewer images than there are ranks
                continue
            logits = self.model(x)
            loss += self.model._criterion(logits, y).item() * len(y)
            correct += accuracy(logits, y)[0].item() * len(y)
            count += len(y)
        loss, correct, count = ranks.totals(loss, correct, count)
        return loss / count, correct / count

    def extra_state(self) -> dict[str, Any]:
        """Return the schedule, and alphas to go back to; batches are a function of epoch and step."""
        earlier = {"earlier": self.earlier_alphas.kept} if self.config.stop == "eigenvalue" else {}
        selection = {"selection": self.selection.state()} if self.selection else {}
        space = [[list(row) for row in rows] for rows in self.model._space]
        stage = {"stage": self.stage, "space": space} if self.config.method == "p-darts" else {}
        return {"scheduler": self.scheduler.state_dict(), **earlier, **selection, **stage}

    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless step, count and schedule go together."""
        match("extra", self.extra_state(), state["extra"])
        if self.config.stop == "eigenvalue":
            now = [alpha.detach().cpu() for alpha in self.model.arch_parameters()]
            earlier, due = state["extra"]["earlier"], min(state["epoch"], WINDOW)
            if len(earlier) != due:
                raise InputError(f"extra.earlier has the alphas of {len(earlier)} epochs, not of {due}")
            match("extra.earlier", [now] * due, earlier)
        tuning = None
        if self.selection:
            self.selection.check_state(state["extra"]["selection"], self._due(state["epoch"]))
            tuning = self.config.learning_rate / 10
        check_images(self.train, state)
        of_stage = {**state, "epoch": self._stage_epoch(state["epoch"])}
        check_cosine(self.scheduler, self.config.stage_epochs, of_stage, tuning)

    def _due(self, epoch: int) -> int:
        """Return how many decisions are made after so many epochs."""
        tuned = epoch - self.config.epochs
        return 0 if tuned < 0 else 1 + tuned // self.config.select_epochs

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""
        self.scheduler.load_state_dict(state["scheduler"])
        self.earlier_alphas.kept = state.get("earlier", [])
        if self.selection:
            self.selection.load_state(state["selection"])

    def alpha_tables(self) -> dict[str, AlphaTable]:
        """Return the alphas of the kinds of cells that there are."""
        return cnn_tables(self.model)

    def learned(self) -> str:
        """Give the accuracy on the alphas' half of the data, and that of guessing."""
        noun = "photographs" if self.config.data == "photos" else "classes"
        return accuracy_lesson(self.history[-1]["valid_acc"], len(self.check.source), self.classes, noun)


def search_cnn(config: CNNConfig, *, resume: str | Path | None = None) -> SearchResult:
    """Search a pair of CNN cells.

    Args:
        config: options, the original's names and defaults.
        resume: folder or checkpoint of a run to go on with, under its own configuration; of ``config``
            only ``device``, ``checkpoint_seconds`` and, other than their defaults, ``memory`` and ``data``
            are taken: where the run's data lie now. A run that is finished says so, and its result is
            returned.

    Returns:
        The genotype, the alphas, the history, and where everything lies.

    Raises:
        InputError: options or data that cannot work, before any work is done; a folder that another process
            uses; a checkpoint that is damaged, or of other data.
        DivergedError: a loss became NaN; the checkpoints of the run are from before.
        RunStopped: a ``KeyboardInterrupt``, by Ctrl-C, SIGTERM or SIGHUP: a checkpoint is saved first.
            Only in the main thread, and only for signals that the program has no handlers for.
        OSError: what a run leaves cannot be written, as on a full disk; the last checkpoint is whole.
    """
    return begin(CNNSearch, config, resume)
