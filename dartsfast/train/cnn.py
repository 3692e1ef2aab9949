"""The training of a found CNN cell from scratch (paper sections 3.2 and 3.3; the original's ``cnn/train.py``
and ``cnn/train_imagenet.py``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast import ranks
from dartsfast.bilevel.flat import average_gradients_
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
    whole,
)
from dartsfast.drawing import draw_genotype
from dartsfast.errors import InputError
from dartsfast.genotypes import CNN, AnyGenotype, resolve_genotype
from dartsfast.modules.sync_norm import synchronise_
from dartsfast.runs.begin import begin
from dartsfast.runs.fit import check_cosine, check_images, check_step, match
from dartsfast.runs.report import Picture
from dartsfast.runs.run import Iteration, Run
from dartsfast.train.config import TrainCNNConfig
from dartsfast.train.count import Size, network_size
from dartsfast.train.evaluate import error_words, test_network
from dartsfast.train.network import batches_of, build_network, check_images_fit
from dartsfast.train.result import TrainResult, epochs
from dartsfast.train.weights import WEIGHTS, save_weights


class CNNTraining(Run):
    """A training between two iterations."""

    kind = "train-cnn"
    noun = "training"
    command = ("train", "cnn")
    unit = "images"
    metrics = ("loss", "acc", "acc5")
    optimizer_names = ("optimizer",)
    scheduled = ("lr",)

    def __init__(self, config: TrainCNNConfig) -> None:
        super().__init__(config)
        self.held_out = config.train_portion < 1  # images of training are, to validate on
        portion = {"train_portion": config.train_portion} if self.held_out else {}
        task = load_images(config.data, download=config.download, image_size=config.image_size, **portion)
        self.fingerprint = image_fingerprint(task, tested=not self.held_out)
        images = limited(task.train if self.held_out else whole(task), config.max_images)
        sides = image_sides(task)
        check_images_fit(config.network, config.auxiliary, *sides)
        self._check_batches(len(images))
        cutout = config.cutout_length if config.cutout else 0
        self.train = self._batches(images, task, stream="train", cutout=cutout)
        check = limited(task.valid, config.max_images) if self.held_out else task.test
        self.check = self._batches(check, task, stream="test", cutout=None)
        self.cell = resolve_genotype(config.arch, CNN)
        torch.manual_seed(config.seed)
        model = build_network(config, len(task.classes), self.cell)
        if config.sync_bn:
            synchronise_(model)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.forward: Any = torch.compile(self.model) if config.compile else self.model
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.scheduler = self._schedule()
        self.steps = 0  # that the optimiser has taken in this epoch
        self.optimizer.register_step_post_hook(self._count_step)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.size: Size = network_size(model, *sides)
        self.work = len(self.train)
        self.every = config.report_freq

    @staticmethod
    def absolute_data(data: str) -> str:
        """Return the option ``data`` such that it means the same in any working directory."""
        return absolute_images(data)

    @classmethod
    def settle(cls, config: TrainCNNConfig) -> TrainCNNConfig:
        """Return the options of a new run such that they mean the same in any working directory."""
        arch = repr(resolve_genotype(config.arch, CNN))
        return dataclasses.replace(super().settle(config), arch=arch)

    def has_stepped(self, state: dict[str, Any], name: str) -> bool | None:
        """As of any run; but steps are skipped until float16's gradients have a scale."""
        return None if self.scaler.is_enabled() else super().has_stepped(state, name)

    def _check_batches(self, images: int) -> None:
        """Raise InputError for a last batch that the second classifier of CIFAR cannot be trained on."""
        config = self.config
        if (
            config.auxiliary
            and config.network == "cifar"
            and images // ranks.size() % config.batch_size == 1 % config.batch_size
        ):
            raise InputError(
                "the second classifier cannot be trained on a last batch of one image (its batch norms have "
                f"one value a channel): of {images} images, use another batch_size than {config.batch_size}"
            )

    def _batches(self, source: ImageSource, task: ImageTask, *, stream: str, cutout: int | None) -> Batches:
        config = self.config
        return batches_of(
            source, task, config, stream=stream, seed=config.seed, device=self.device, cutout=cutout
        )

    def _count_step(self, *_: Any) -> None:
        self.steps += 1

    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        config, schedulers = self.config, torch.optim.lr_scheduler
        if config.schedule == "step":
            return schedulers.StepLR(self.optimizer, config.decay_period, config.gamma)
        return schedulers.CosineAnnealingLR(self.optimizer, config.epochs)

    def iterations(self) -> Iterator[Iteration]:
        """Run what is left of the epoch, a step of the weights an iteration."""
        config = self.config
        self.model.train()
        self.model.drop_path_prob = config.drop_path_prob * self.epoch / config.epochs
        for x, y in self.train.iterate(self.epoch, self.step):
            logits, loss = self.iteration(x, y)
            self.step += 1
            top1, top5 = accuracy(logits, y, (1, 5))
            self.record(len(y) * ranks.size(), loss=loss.item(), acc=top1.item(), acc5=top5.item())
            yield Iteration(self.step, {"loss": self.mean("loss"), "acc": self.mean("acc")})

    def iteration(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Move the weights on images x [N, 3, H, W] of classes y [N]; return logits [N, classes], loss []."""
        config = self.config
        if config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        dtype = getattr(torch, config.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            logits, logits_aux = self.forward(x)
            loss = nn.functional.cross_entropy(logits, y, label_smoothing=config.label_smooth)
            if config.auxiliary:
                auxiliary = nn.functional.cross_entropy(logits_aux, y, label_smoothing=config.label_smooth)
                loss = loss + config.auxiliary_weight * auxiliary
        self.scaler.scale(loss).backward()
        average_gradients_(self.model.parameters())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return logits.detach(), loss.detach()

    def finish_epoch(self) -> dict[str, Any]:
        """Test, or validate, on images as they are, and move the schedule on."""
        lr = self.scheduler.get_last_lr()[0]
        waited, self.train.waited = self.train.waited, 0.0
        tested = test_network(self.model, self.check, self.stop.check)
        if self.steps == 0:
            self.say(
                f"epoch {self.epoch + 1}: none of {self.step} steps was taken, as no gradient was finite in "
                f"float16, scaled by {self.scaler.get_scale():g} by now: if that goes on, use --precision "
                "bfloat16, or lower the learning rate"
            )
        self.steps = 0
        self.scheduler.step()
        what = "valid" if self.held_out else "test"
        return {
            "lr": lr,
            "drop_path_prob": self.model.drop_path_prob,
            "train_loss": self.mean("loss"),
            "train_acc": self.mean("acc"),
            "train_acc5": self.mean("acc5"),
            f"{what}_loss": tested.loss,
            f"{what}_acc": tested.acc,
            f"{what}_acc5": tested.acc5,
            "loader_share": waited / max(self.seconds, 1e-9),
        }

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return that of the weights."""
        return {"optimizer": self.optimizer}

    def extra_state(self) -> dict[str, Any]:
        """Return the schedule, the scale of float16's gradients, and the steps taken in this epoch; batches
        follow from epoch and step."""
        return {
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "steps": self.steps,
        }

    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless step, count and schedule go together."""
        match("extra", self.extra_state(), state["extra"])
        check_images(self.train, state)
        if not 0 <= state["extra"]["steps"] <= state["step"]:
            raise InputError(f"extra.steps is {state['extra']['steps']} after {state['step']} iterations")
        if self.config.schedule == "step":
            check_step(self.scheduler, state)
        else:
            check_cosine(self.scheduler, self.config.epochs, state)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back the schedule and the scale."""
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]

    def genotype(self) -> AnyGenotype:
        """Return the cell that is trained."""
        return self.cell

    def pictures(self) -> dict[str, Picture]:
        """Return the cell."""
        return {"cell": Picture(None, lambda path: draw_genotype(self.cell, path))}

    def introduction(self) -> str:
        """Say what is trained here, on what and with how much."""
        config = self.config
        return (
            f"training of {config.layers} cells, {config.init_channels} channels, on {self.device}, "
            f"{config.precision}, {self.size}"
        )

    def result(self, out: Path, checkpoint: Path) -> TrainResult:
        """Write the weights and return where everything lies."""
        save_weights(out, self.model.state_dict())
        return _result(self.cell, self.model.state_dict(), self.history, out, checkpoint)

    @classmethod
    def finished(cls, out: Path, checkpoint: Path, state: dict[str, Any]) -> TrainResult:
        """Return the result of a training that is over; its data need not be there any more."""
        if not (out / WEIGHTS).exists():  # it was stopped after its last checkpoint
            save_weights(out, state["model"])
        cell = resolve_genotype(state["config"]["arch"])
        return _result(cell, state["model"], state["history"], out, checkpoint)


def _result(
    cell: AnyGenotype, weights: dict[str, Tensor], history: list[dict[str, Any]], out: Path, checkpoint: Path
) -> TrainResult:
    row = history[-1]
    what, name = ("test", "test") if "test_acc" in row else ("validation", "valid")
    errors = error_words(row[f"{name}_acc"], row[f"{name}_acc5"], len(weights["classifier.weight"]))
    lesson = f"after {epochs(row['epoch'])}: {what} {errors}"
    return TrainResult(cell, history, out, checkpoint, out / WEIGHTS, lesson)


def train_cnn(config: TrainCNNConfig, *, resume: str | Path | None = None) -> TrainResult:
    """Train a found CNN cell from scratch on all training images, testing it after every epoch.

    Args:
        config: options, the original's names and defaults.
        resume: as in :func:`dartsfast.search.search_cnn`.

    Returns:
        The history, and where everything lies.

    Raises:
        InputError, DivergedError, RunStopped, OSError: as :func:`dartsfast.search.search_cnn`.
    """
    return begin(CNNTraining, config, resume)
