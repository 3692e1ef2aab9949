"""DARTS-PT: the operation is kept whose removal hurts most (Wang et al., "Rethinking architecture selection
in differentiable NAS", ICLR 2021, algorithm 1).

After the search edges are decided one by one, in random order: each of an edge's operations is left out in
turn, and the one without which the accuracy on the validation half is lowest is the edge's, with weight 1.
When all have theirs, the nodes are decided, in random order too: of the edges into a node the one is taken
away without which the accuracy is highest, until two are left. Between two decisions, each one of the normal
and one of the reduction cell, the network is tuned: weights and alphas go on, the weights with a tenth of
their first learning rate and fresh momentum.

Differences from the public code: ``none`` cannot be chosen (its spaces have none); it tunes one epoch more,
after the last decision; edges and nodes are drawn from a stream of the seed's own; edges that are taken away,
and operations that were not chosen, go on with the weight 0. As there, batch norms have the statistics of the
batch where accuracies are compared, and epochs of tuning are 10 (``--select_epochs``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.cnn.model_search import Cell, Network
from dartsfast.errors import InputError


class CosineThenTuning(torch.optim.lr_scheduler.CosineAnnealingLR):
    """A cosine over the search, then a tenth of the first rate."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of the epoch."""
        if self.last_epoch >= self.T_max:
            return [rate / 10 for rate in self.base_lrs]
        return super().get_lr()


class Selection:
    """What is decided of the cells of ``model``, whose mixing weights it changes from here on.

    Attributes:
        chosen: operation of every edge, [2, edges] (normal, reduce), -1 where it is open.
        kept: edges that are still there, [2, edges].
        decisions: how many are made.
    """

    def __init__(self, model: Network, seed: int) -> None:
        steps = model._steps
        self.into = [
            edges.tolist() for edges in torch.arange(_edges(steps)).split([2 + i for i in range(steps)])
        ]
        self.spaces = [model._space.of(reduction) for reduction in (False, True)]
        self.kinds = sorted(
            {int(cast(Cell, cell).reduction) for cell in model.cells}
        )  # of the cells that there are
        draw = torch.Generator().manual_seed(seed)
        self.edges = [torch.randperm(_edges(steps), generator=draw).tolist() for _ in range(2)]
        self.nodes = [(1 + torch.randperm(steps - 1, generator=draw)).tolist() for _ in range(2)]
        self.chosen = torch.full((2, _edges(steps)), -1)
        self.kept = torch.ones(2, _edges(steps), dtype=torch.bool)
        self.decisions = 0
        model._adjust = self.adjusted

    def adjusted(self, rows: Tensor, reduction: bool) -> Tensor:
        """Return weights [edges, ops]: 1 of chosen operations, 0 of edges that are gone, else ``rows``."""
        chosen, kept = (t[int(reduction)].to(rows.device)[:, None] for t in (self.chosen, self.kept))
        one_hot = F.one_hot(chosen[:, 0].clamp(min=0), rows.shape[-1]).to(rows)
        return torch.where(chosen >= 0, one_hot, rows) * kept.to(rows)

    def decide_(self, model: Network, accuracy: Callable[[], float]) -> None:
        """Make the next decision of every kind of cell; what ``accuracy`` raises leaves all as it was."""
        state = self.state()
        try:
            for kind in self.kinds:
                if self.decisions < len(self.edges[kind]):
                    self._choose(model, kind, self.edges[kind][self.decisions], accuracy)
                else:
                    node = self.nodes[kind][self.decisions - len(self.edges[kind])]
                    self._thin(kind, self.into[node], accuracy)
            self.decisions += 1
            state = self.state()
        finally:
            self.load_state(state)
            model._adjust = self.adjusted

    def _choose(self, model: Network, kind: int, edge: int, accuracy: Callable[[], float]) -> None:
        found = {}
        for place, name in enumerate(self.spaces[kind][edge]):
            if name != "none":
                model._adjust = self._without(kind, edge, place)
                found[place] = accuracy()
        self.chosen[kind, edge] = min(found, key=found.__getitem__)

    def _without(self, kind: int, edge: int, place: int) -> Callable[[Tensor, bool], Tensor]:
        def adjusted(rows: Tensor, reduction: bool) -> Tensor:
            rows = self.adjusted(rows, reduction)
            if reduction == bool(kind):
                rows[edge, place] = 0.0
            return rows

        return adjusted

    def _thin(self, kind: int, edges: Sequence[int], accuracy: Callable[[], float]) -> None:
        left = list(edges)
        while len(left) > 2:
            found = {}
            for edge in left:
                self.kept[kind, edge] = False
                found[edge] = accuracy()
                self.kept[kind, edge] = True
            least = max(reversed(left), key=found.__getitem__)  # of equals the last
            self.kept[kind, least] = False
            left.remove(least)

    def state(self) -> dict[str, Any]:
        """Return what is decided."""
        return {"chosen": self.chosen.clone(), "kept": self.kept.clone(), "decisions": self.decisions}

    def check_state(self, state: dict[str, Any], decisions: int) -> None:
        """Raise InputError unless ``state``, of the right types and shapes, is after so many decisions."""
        edges = self.chosen.shape[1]
        made = [[k >= 0 for k in row] for row in state["chosen"].tolist()]
        wanted = [[False] * edges for _ in range(2)]
        for kind in self.kinds:
            for edge in self.edges[kind][:decisions]:
                wanted[kind][edge] = True
        most = len(self.spaces[0][0])
        if state["decisions"] != decisions or made != wanted or not (state["chosen"] < most).all():
            raise InputError(f"extra.selection is not of a moment after {decisions} decisions")

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        self.chosen, self.kept = state["chosen"].clone(), state["kept"].clone()
        self.decisions = state["decisions"]


def _edges(steps: int) -> int:
    return sum(2 + i for i in range(steps))
