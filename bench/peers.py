"""What the suites measure: search iterations, and the ways (peers) to compute them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

REFERENCE = "reference"
HOST = torch.device("cpu")


@dataclass(frozen=True)
class Peer:
    """A way to compute: backend, what it keeps and how, memory format, and whether cells are compiled.

    ``budget``: MB an image or column of text that it may take, in place of ``memory``.
    """

    backend: str
    memory: str = "store"
    storage: torch.dtype | None = None
    channels_last: bool = False
    compiled: bool = False
    budget: float | None = None

    def kept(self, batch: int) -> str:
        """Return the memory mode or budget of a network for batches of so many."""
        return self.memory if self.budget is None else f"{self.budget * batch:g}MB"


class Iteration(ABC):
    """A search with everything an iteration needs: model, optimisers, a training and a validation batch."""

    model: Any
    optimizer: torch.optim.Optimizer
    architect: Any
    clip: float  # of the weights' gradient

    @abstractmethod
    def __init__(
        self,
        peer: Peer,
        size: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device = HOST,
    ) -> None:
        """Build the search of ``peer`` at ``size``; the same numbers for all peers and devices."""

    @abstractmethod
    def step_alphas(self, order: int) -> None:
        """Move the alphas by a gradient of ``order``."""

    @abstractmethod
    def train_loss(self) -> Tensor:
        """Return the training loss that the alphas' gradient is taken of."""

    def weight_loss(self) -> Tensor:
        """Return the loss that moves the weights."""
        return self.train_loss()

    def run(self, order: int) -> None:
        """Move the alphas by a gradient of ``order``, then the weights."""
        self.optimizer.zero_grad()
        self.step_alphas(order)
        self.weight_loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def run_in_place(self, order: int) -> None:
        """Do the same so that it can be recorded: what the next one reads lies where this one read it."""
        self.run(order)

    def loss_and_gradients(self) -> list[Tensor]:
        """Return the training loss and its gradients by all alphas and all weights, each flat."""
        loss = self.train_loss()
        alphas, weights = self.model.arch_parameters(), list(self.model.parameters())
        found = torch.autograd.grad(loss, [*alphas, *weights])
        return [loss.detach(), flat(found[: len(alphas)]), flat(found[len(alphas) :])]


@dataclass(frozen=True)
class Workload:
    """A search that suites measure.

    Attributes:
        network: ``cnn`` or ``rnn``.
        iteration: its iterations.
        peers: the ways to compute them, by name.
        size: of the network and its batch, as published.
        quick: the same, tiny.
        gate: the same, small, for the comparison with float64 that comes before the clock.
    """

    network: str
    iteration: type[Iteration]
    peers: Mapping[str, Peer]
    size: Any
    quick: Any
    gate: Any


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    """Return all elements in one vector, each tensor's in the order of its indices."""
    # Contiguous, or a weight in channels_last would be flattened in another order.
    return torch.cat([t.contiguous().flatten() for t in tensors])
