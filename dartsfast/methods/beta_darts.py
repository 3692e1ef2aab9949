"""Beta-DARTS: keep what the alphas do to each other's weights small (Ye et al., CVPR 2022).

The loss of the alphas has beside the validation loss

    lambda * mean over edges of log sum over operations of exp(alpha),

lambda growing linearly from 0 with the epochs, to 50 in the paper (``--beta_decay 50``).

Differences from the public code: its lambda is 50 after 100 epochs, of however many a search has, here
``--beta_decay`` after all of them; it has the term in first order only, here it is in both. The mean is taken
for each kind of cell, and the means are added.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def decay(alphas: Iterable[Tensor]) -> Tensor:
    """Return the term without lambda, [], of alphas [edges, ops] a kind of cell."""
    return torch.stack([table.logsumexp(-1).mean() for table in alphas]).sum()
