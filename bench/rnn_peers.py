"""The RNN search, and the ways to compute its iterations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.peers import HOST, REFERENCE, Iteration, Peer, Workload, flat
from dartsfast.errors import InputError
from dartsfast.rnn.architect import Architect
from dartsfast.rnn.model import search_loss
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.search.config import RNNConfig

SEARCH = RNNConfig()  # dropouts, learning rates, decays and clip are its defaults


@dataclass(frozen=True)
class Size:
    """The network and its batch; the defaults are the paper's search on Penn Treebank."""

    batch: int = 256
    nhid: int = 300
    bptt: int = 35
    vocabulary: int = 10_000
    dropout: bool = True  # the search's, else none

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise InputError(f"the RNN's batch norm needs a batch of at least 2, got {self.batch}")


PEERS = {
    "cpu store": Peer("cpu"),
    "cpu recompute": Peer("cpu", memory="recompute"),
    "triton store": Peer("triton"),
    "triton recompute": Peer("triton", memory="recompute"),
    REFERENCE: Peer("reference"),
}


BUDGETS = (3.5, 3, 2.5, 2)  # MB a column
MEMORY_PEERS = {
    "cpu store": Peer("cpu"),
    **{f"cpu {budget} MB a column": Peer("cpu", budget=budget) for budget in BUDGETS},
    "cpu recompute": Peer("cpu", memory="recompute"),
    REFERENCE: Peer("reference"),
    "reference recompute": Peer("reference", memory="recompute"),
}


class RNNIteration(Iteration):
    """An iteration of the RNN search on random tokens."""

    clip = SEARCH.clip

    def __init__(
        self, peer: Peer, size: Size, dtype: torch.dtype = torch.float32, device: torch.device = HOST
    ) -> None:
        torch.manual_seed(0)
        dropouts = SEARCH.dropout, SEARCH.dropouth, SEARCH.dropoutx, SEARCH.dropouti, SEARCH.dropoute
        model = RNNModelSearch(
            size.vocabulary,
            *[size.nhid] * 3,
            *(dropouts if size.dropout else [0.0] * 5),
            backend=peer.backend,
            memory=peer.kept(size.batch),
        )
        self.model = model.to(device, dtype)
        self.train, self.valid = _batch(size, 1, device), _batch(size, 2, device)
        if peer.budget is not None:
            self.model.fit_memory(self.train[0].shape, order=2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), SEARCH.lr, weight_decay=SEARCH.wdecay)
        self.architect = Architect(self.model, SEARCH)
        self.hidden, self.hidden_valid = (self.model.init_hidden(size.batch) for _ in range(2))

    def step_alphas(self, order: int) -> None:
        """Move the alphas by a gradient of ``order``."""
        self.hidden_valid, _ = self.architect.step(
            self.hidden, *self.train, self.hidden_valid, *self.valid, self.optimizer, unrolled=order == 2
        )

    def train_loss(self) -> Tensor:
        """Return the negative log-likelihood of the training batch."""
        return self.model._loss(self.hidden, *self.train)[0]

    def weight_loss(self) -> Tensor:
        """Return the same with the slowness term, and go on from the hidden states after it."""
        loss, _, self.hidden = search_loss(self.model, self.hidden, *self.train, SEARCH.beta)
        return loss

    def run_in_place(self, order: int) -> None:
        """Do the same with the hidden states where they were."""
        places = self.hidden, self.hidden_valid
        self.run(order)
        for place, after in zip(places, (self.hidden, self.hidden_valid), strict=True):
            for old, new in zip(place, after, strict=True):
                old.copy_(new)
        self.hidden, self.hidden_valid = places

    def loss_and_gradients(self) -> list[Tensor]:
        """Return the training loss and its gradients, then the weights' loss and its gradient by them."""
        found = super().loss_and_gradients()
        loss = self.weight_loss()
        return [*found, loss.detach(), flat(torch.autograd.grad(loss, list(self.model.parameters())))]


def _batch(size: Size, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(size.vocabulary, (size.bptt + 1, size.batch), generator=generator, device=HOST).to(
        device
    )
    return tokens[:-1], tokens[1:]


RNN = Workload(
    network="rnn",
    iteration=RNNIteration,
    peers=PEERS,
    size=Size(),
    quick=Size(batch=4, nhid=8, bptt=3, vocabulary=20),
    # No dropout: float32 and float64 would draw other masks.
    gate=Size(batch=8, nhid=12, bptt=4, vocabulary=30, dropout=False),
)

MEMORY = dataclasses.replace(RNN, network="rnn_memory", peers=MEMORY_PEERS)
