"""DrNAS: mixing weights drawn from a Dirichlet distribution (Chen et al., ICLR 2021).

Every pass draws the weights of an edge from Dir(beta), beta = elu(alpha) + 1, through whose sample the
gradient goes (pathwise derivatives), and the loss of the alphas has the distance of the distributions from
the flat one:

    L_val + lambda * sum over edges of KL(Dir(beta) || Dir(1)).

Differences from the public code: it has no distance by default, but a weight decay of the alphas
(``--drnas_kl 0 --arch_weight_decay 1e-3``), and without the decay where it has one; its progressive search
(partial channels that grow, operations that are pruned) is not here; its pools have no batch norm; ``none``
cannot win here; validation takes the means of the distributions and does not draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from dartsfast.cnn.model_search import Network


class DrNAS(Network):
    """The search network of DrNAS, with the arguments of :class:`~dartsfast.cnn.model_search.Network`."""

    def _build(self, *arguments: Any, **options: Any) -> Network:
        return DrNAS(*arguments, **options)

    def concentration(self, reduction: bool) -> Tensor:
        """Return beta, [edges, ops], above 0."""
        return F.elu(self.alphas_reduce if reduction else self.alphas_normal) + 1

    def logits(self, reduction: bool) -> Tensor:
        """Return log(beta), [edges, ops]: its softmax is the mean of Dir(beta)."""
        return self.concentration(reduction).log()

    def mixing_weights(self, kinds: Sequence[bool]) -> list[Tensor]:
        """Return a sample, [edges, ops] a kind; in evaluation, and where nothing is computed, the mean."""
        if not self.training or self.alphas_normal.is_meta:  # where torch draws no Dir(beta)
            return super().mixing_weights(kinds)
        return [_dirichlet(self.concentration(kind)).rsample() for kind in kinds]

    def distance(self) -> Tensor:
        """Return the sum of KL(Dir(beta) || Dir(1)) over the edges of the kinds of cells there are, []."""
        kinds = sorted({bool(cell.reduction) for cell in self.cells})
        beta = torch.cat([self.concentration(kind) for kind in kinds])
        return kl_divergence(_dirichlet(beta), _dirichlet(torch.ones_like(beta))).sum()


def _dirichlet(concentration: Tensor) -> Dirichlet:
    return Dirichlet(concentration, validate_args=False)  # which would wait for the device
