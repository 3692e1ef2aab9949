"""The CNN search, and the ways to compute its iterations."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.peers import HOST, REFERENCE, Iteration, Peer, Workload
from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network

LEARNING_RATE = 0.025
# The original's defaults.
ARCHITECT = {"momentum": 0.9, "weight_decay": 3e-4, "arch_learning_rate": 3e-4, "arch_weight_decay": 1e-3}


@dataclass(frozen=True)
class Size:
    """The network and its batch; the defaults are the paper's search on CIFAR-10."""

    batch: int = 64
    C: int = 16
    layers: int = 8
    image: int = 32
    classes: int = 10


PEERS = {
    "cpu store": Peer("cpu"),
    "cpu store bf16": Peer("cpu", storage=torch.bfloat16),
    "cpu recompute": Peer("cpu", memory="recompute"),
    "triton store": Peer("triton"),
    "triton recompute": Peer("triton", memory="recompute"),
    "triton cell": Peer("triton", memory="cell"),
    "triton store bf16": Peer("triton", storage=torch.bfloat16),
    REFERENCE: Peer("reference"),
    "reference channels_last": Peer("reference", channels_last=True),
    "reference compiled": Peer("reference", compiled=True),
}


BUDGETS = (18, 12, 8, 5)  # MB an image
MEMORY_PEERS = {
    "cpu store": Peer("cpu"),
    **{f"cpu {budget} MB an image": Peer("cpu", budget=budget) for budget in BUDGETS},
    "cpu recompute": Peer("cpu", memory="recompute"),
    "cpu cell": Peer("cpu", memory="cell"),
    REFERENCE: Peer("reference"),
    "reference cell": Peer("reference", memory="cell"),
}


class CNNIteration(Iteration):
    """An iteration of the CNN search on random images."""

    clip = 5.0

    def __init__(
        self, peer: Peer, size: Size, dtype: torch.dtype = torch.float32, device: torch.device = HOST
    ) -> None:
        torch.manual_seed(0)
        model = Network(
            size.C,
            size.classes,
            size.layers,
            nn.CrossEntropyLoss(),
            backend=peer.backend,
            memory=peer.kept(size.batch),
            storage_dtype=peer.storage,
        )
        self.model = model.to(device, dtype)
        self.train, self.valid = (_batch(size, seed, dtype, device) for seed in (1, 2))
        if peer.budget is not None:
            self.model.fit_memory(self.train[0].shape, order=2)
        if peer.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
            self.train, self.valid = _channels_last(self.train), _channels_last(self.valid)
        if peer.compiled:
            _compile_cells(self.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            LEARNING_RATE,
            momentum=ARCHITECT["momentum"],
            weight_decay=ARCHITECT["weight_decay"],
        )
        self.architect = Architect(self.model, argparse.Namespace(**ARCHITECT))

    def step_alphas(self, order: int) -> None:
        """Move the alphas by a gradient of ``order``."""
        self.architect.step(*self.train, *self.valid, LEARNING_RATE, self.optimizer, unrolled=order == 2)

    def train_loss(self) -> Tensor:
        """Return the cross entropy of the training batch."""
        return self.model._loss(*self.train)


def _compile_cells(model: Network) -> None:
    """Compile every cell in place, for its own shapes (inductor fails on dynamic ones here)."""
    # Cells share their code, and what needs a gradient differs between the passes of an iteration: more
    # variants than the default limit, beyond which torch would quietly run the rest uncompiled.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for cell in model.cells:
        cell.compile(dynamic=False)


def _batch(size: Size, seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size.batch, 3, size.image, size.image, generator=generator, device=HOST)
    labels = torch.randint(size.classes, (size.batch,), generator=generator, device=HOST)
    return images.to(device, dtype), labels.to(device)


def _channels_last(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].to(memory_format=torch.channels_last), batch[1]


CNN = Workload(
    network="cnn",
    iteration=CNNIteration,
    peers=PEERS,
    size=Size(),
    quick=Size(batch=2, C=4, layers=3, image=8),
    gate=Size(batch=2, C=4, layers=3, image=16),
)

MEMORY = dataclasses.replace(CNN, network="cnn_memory", peers=MEMORY_PEERS)
