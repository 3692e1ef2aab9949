"""Descendants of DARTS, a file each: what their networks mix, and what their alphas' loss has beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast.cnn.model_search import Network
from dartsfast.cnn.spaces import SPACES, AnySpace
from dartsfast.fused import Fit
from dartsfast.methods.beta_darts import decay
from dartsfast.methods.darts_minus import DARTSMinus
from dartsfast.methods.drnas import DrNAS
from dartsfast.methods.gdas import GDAS
from dartsfast.methods.p_darts import CELLS, PDARTS
from dartsfast.methods.pc_darts import PCDARTS
from dartsfast.names import CNN_MEMORY_MODES

# By the names of the option ``method``: the network, and what of the options it takes beside all.
_NETWORKS: dict[str, tuple[Callable[..., Network], Callable[[Any], dict[str, Any]]]] = {
    "darts": (Network, lambda config: {}),
    "pc-darts": (PCDARTS, lambda config: {"share": config.pc_share}),
    "gdas": (GDAS, lambda config: {"tau": (config.gdas_tau_max, config.gdas_tau_min)}),
    "drnas": (DrNAS, lambda config: {}),
}


def new_network(config: Any, classes: int, space: AnySpace | None = None, stage: int = 0) -> Network:
    """Return the search network that a :class:`~dartsfast.search.CNNConfig` asks for.

    Args:
        config: the options.
        classes: that the network tells apart.
        space: of a stage of P-DARTS; None for that of the options.
        stage: of P-DARTS, from 0.
    """
    if config.method == "p-darts":
        return _of_stage(config, classes, space or SPACES[config.space], stage)
    network, own = _NETWORKS[config.method]
    if config.auxiliary_skip:
        network = DARTSMinus
    layers = config.stage_cells if config.space == "nasbench201" else config.layers
    arguments = config.init_channels, classes, layers, nn.CrossEntropyLoss()
    return network(*arguments, primitives=SPACES[config.space], **_options(config), **own(config))


def fit_network(config: Any, model: Network, images: Sequence[int]) -> Fit | None:
    """Choose how cells keep where the options leave that to a plan; None: they do not.

    Args:
        config: the options.
        model: their network.
        images: [N, 3, H, W] of a pass.

    Raises:
        InputError: nothing fits, or nothing can be planned.
    """
    if config.memory not in CNN_MEMORY_MODES:
        return model.fit_memory(images, config.order, config.parts)
    if config.accumulate > config.parts:
        return model.fit_to_part(images, config.accumulate, config.order)
    return None


def _options(config: Any) -> dict[str, Any]:
    half = config.storage_dtype != "float32"
    return {
        "backend": config.backend,
        "memory": config.memory,
        "storage_dtype": getattr(torch, config.storage_dtype) if half else None,
    }


def _of_stage(config: Any, classes: int, space: AnySpace, stage: int) -> Network:
    rate = [float(text) for text in config.pdarts_rates.split(",")][stage]
    return PDARTS(
        config.init_channels,
        classes,
        config.layers + CELLS[stage],
        nn.CrossEntropyLoss(),
        primitives=space,
        rate=rate,
        warmup=config.warmup_epochs,
        skips=config.pdarts_skips,
        **_options(config),
    )


def penalty(config: Any, model: Network, epoch: int) -> Tensor | float:
    """Return what the loss of the alphas has beside the validation loss in an epoch, from 0, []."""
    found: Tensor | float = 0.0
    if isinstance(model, DrNAS) and config.drnas_kl:
        found = found + config.drnas_kl * model.distance()
    if config.beta_decay:
        kinds = sorted({bool(cell.reduction) for cell in model.cells})
        share = config.beta_decay * min(epoch / config.epochs, 1)
        found = found + share * decay(model.alphas_reduce if kind else model.alphas_normal for kind in kinds)
    return found
