"""``dartsfast compare rnn``: two backends on a search of a recurrent cell, on random tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast.bilevel.guard import random_state, set_random_state
from dartsfast.compare.config import CompareRNNConfig
from dartsfast.compare.measure import Batch, Row, comparison, generator, iteration_rows, part_row
from dartsfast.rnn.architect import Architect
from dartsfast.rnn.model import search_loss
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.search.config import RNNConfig

SEARCH = RNNConfig()  # learning rates, decays and clip are its defaults


def compare_rnn(config: CompareRNNConfig) -> dict[str, Any]:
    """Run two backends side by side; result and errors as :func:`dartsfast.compare.compare_cnn`."""
    config.check()
    parts = _part_rows(*(_model(config, backend) for backend in config.backends), config=config)
    runs = [_Run(config, backend) for backend in config.backends]
    iterations = iteration_rows(runs, config, partial(_batch, config))
    return comparison(
        config,
        runs,
        parts,
        iterations,
        size=f"nhid {config.nhid}, BPTT {config.bptt}, dropout {config.dropout:g}",
        data=f"seeded random tokens of a vocabulary of {config.vocabulary:,}",
    )


def _model(config: CompareRNNConfig, backend: str) -> RNNModelSearch:
    torch.manual_seed(config.seed)
    widths, dropouts = [config.nhid] * 3, [config.dropout] * 5
    model = RNNModelSearch(config.vocabulary, *widths, *dropouts, backend=backend, memory="store")
    return model.to(getattr(torch, config.dtype))


def _batch(config: CompareRNNConfig, number: int) -> Batch:
    """Return batch ``number``: tokens [T, B] and the tokens after them."""
    shape = config.bptt + 1, config.batch_size
    tokens = torch.randint(config.vocabulary, shape, generator=generator(config.seed, number))
    return tokens[:-1], tokens[1:]


def _part_rows(first: RNNModelSearch, second: RNNModelSearch, *, config: CompareRNNConfig) -> list[Row]:
    """Compare the parts of a first forward, each of ``second`` on the inputs that ``first``'s had.

    The gradients are those of the whole loss.
    """
    a = _forward(first, config)
    b = _forward(second, config, cell_output=a["output"])
    set_random_state(a["stream"])
    with torch.no_grad():
        states, _ = second.rnns[0](*a["inputs"])
    rows = [part_row("embedding", a["inputs"][0], b["inputs"][0])]
    for time, (ours, theirs) in enumerate(zip(a["output"][0], states, strict=True), 1):
        rows.append(part_row(f"state {time}", ours, theirs))
    rows.append(part_row("log-probabilities", a["log_prob"], b["log_prob"]))
    gradients = [_loss_and_gradients(model, config) for model in (first, second)]
    return rows + [part_row(name, value, gradients[1][name]) for name, value in gradients[0].items()]


@torch.no_grad()
def _forward(
    model: RNNModelSearch, config: CompareRNNConfig, cell_output: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """Return ``log_prob``, and the cell's ``inputs``, ``output`` and random ``stream`` before its call.

    With ``cell_output``, what follows the cell goes on from that and not from its own output.
    """
    found: dict[str, Any] = {}

    def before(cell: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        found.update(inputs=inputs, stream=random_state())

    def after(cell: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        found["output"] = output
        return cell_output

    cell = model.rnns[0]
    handles = [cell.register_forward_pre_hook(before), cell.register_forward_hook(after)]
    torch.manual_seed(config.seed)
    found["log_prob"], _ = model(_batch(config, 0)[0], model.init_hidden(config.batch_size))
    for handle in handles:
        handle.remove()
    return found


def _loss_and_gradients(model: RNNModelSearch, config: CompareRNNConfig) -> dict[str, Tensor]:
    leaves = {"alphas": model.weights, **dict(model.named_parameters())}
    torch.manual_seed(config.seed)
    loss, _ = model._loss(model.init_hidden(config.batch_size), *_batch(config, 0))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"loss": loss.detach(), **named}


class _Run:
    """A search on one backend, advanced an iteration at a time."""

    def __init__(self, config: CompareRNNConfig, backend: str) -> None:
        self.order = config.order
        self.model = _model(config, backend)
        self.optimizer = torch.optim.SGD(self.model.parameters(), SEARCH.lr, weight_decay=SEARCH.wdecay)
        self.architect = Architect(self.model, SEARCH)
        self.hidden = self.hidden_valid = self.model.init_hidden(config.batch_size)
        self.stream = random_state()  # its own, so that both runs draw the same masks

    def iterate(self, train: Batch, valid: Batch) -> Tensor:
        """Move the alphas, then the weights; return the training loss."""
        set_random_state(self.stream)
        self.hidden_valid, _ = self.architect.step(
            self.hidden, *train, self.hidden_valid, *valid, self.optimizer, unrolled=self.order == 2
        )
        self.optimizer.zero_grad()
        loss, raw_loss, self.hidden = search_loss(self.model, self.hidden, *train, SEARCH.beta)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), SEARCH.clip)
        self.optimizer.step()
        self.stream = random_state()
        return raw_loss.detach()
