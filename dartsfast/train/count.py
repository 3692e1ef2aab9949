"""How large a network is and what it takes, counted as papers do."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dartsfast.cnn.utils import count_parameters_in_MB


class Size(NamedTuple):
    """Parameters in millions, second classifiers left out, and multiply-adds in millions, of one image."""

    parameters: float
    multiply_adds: float

    def __str__(self) -> str:
        return f"{self.parameters:.2f} M parameters, {self.multiply_adds:.0f} M multiply-adds an image"


def network_size(model: nn.Module, height: int, width: int) -> Size:
    """Count what ``model`` takes for one image [1, 3, height, width], as torch's counter of operations does.

    Nothing is computed: it runs on the meta device, in a copy that is not in training. A multiply-add is two
    of torch's operations; sums, norms and pools are not counted. What papers count: docs/differences.md.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, 3, height, width, device="meta"))
    return Size(count_parameters_in_MB(model), counter.get_total_flops() / 2e6)
