"""GDAS: one operation an edge, drawn by its alphas (Dong and Yang, "Searching for a robust neural
architecture in four GPU hours", CVPR 2019).

Every pass draws Gumbel noise o of each alpha and weighs the operations of an edge by (section 3.2)

    h = one_hot(argmax(h~)),  h~ = softmax((log softmax(alpha) + o) / tau),

and the gradient of h is that of h~, at the operation that was drawn alone: the others get none. tau falls
linearly over the epochs.

Differences from the public code (AutoDL-Projects): its cells of several reductions are fixed, here both kinds
are searched; here all operations run, those that were not drawn with the weight 0, so that their batch norms
see the batch too; validation takes the operation of the largest alpha on every edge and does not draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dartsfast.cnn.model_search import Network


def drawn(alphas: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Return h, [edges, ops] like ``alphas`` and ``noise``, with the gradient of h~ where it is 1."""
    soft = ((alphas.log_softmax(-1) + noise) / tau).softmax(-1)
    chosen = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return chosen * (1 + (soft - soft.detach()))  # just 1 where it was drawn


class GDAS(Network):
    """The search network of GDAS.

    Args:
        arguments, options: of :class:`~dartsfast.cnn.model_search.Network`.
        tau: temperature of the first and of the last epoch.
    """

    def __init__(self, *arguments: Any, tau: tuple[float, float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tau = tau
        self.tau = tau[0]

    def _build(self, *arguments: Any, **options: Any) -> Network:
        return GDAS(*arguments, tau=self._tau, **options)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the temperature."""
        first, last = self._tau
        self.tau = first + (last - first) * epoch / max(epochs - 1, 1)

    def mixing_weights(self, kinds: Sequence[bool]) -> list[Tensor]:
        """Return h, [edges, ops] a kind; in evaluation of no noise."""
        return [drawn(self.logits(kind), self._noise(self.logits(kind)), self.tau) for kind in kinds]

    def _noise(self, alphas: Tensor) -> Tensor:
        if not self.training:
            return torch.zeros_like(alphas)
        exponential = torch.empty_like(alphas, requires_grad=False).exponential_()
        return -exponential.clamp_min(torch.finfo(alphas.dtype).tiny).log()
