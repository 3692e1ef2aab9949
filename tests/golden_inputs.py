"""The formula inputs of the golden figures: the same networks and batches without anyone's random numbers."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from dartsfast.cnn.model_search import Network
from dartsfast.rnn.model_search import RNNModelSearch

FOLDER = Path(__file__).parent / "golden"


def load(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def cases(prefix):
    return sorted(path.stem for path in FOLDER.glob(f"{prefix}_*.json"))


def wave(shape, a, b, scale=1.0):
    n = math.prod(shape)
    i = torch.arange(n, dtype=torch.float64)
    return (scale * torch.sin(a * (i + 1) + b * (i % 7) + 0.05 * (i % 11))).view(shape)


def cnn(config, **options):
    model = Network(
        config["C"],
        config["classes"],
        config["layers"],
        nn.CrossEntropyLoss(),
        config["steps"],
        config["multiplier"],
        **options,
    ).double()
    with torch.no_grad():
        for t, (name, p) in enumerate(model.named_parameters()):
            a = 0.7 + 0.01 * t
            if p.dim() == 1:
                p.copy_(wave(p.shape, a, 1.3, 0.1) + (1 if name.endswith("weight") else 0))
            else:
                p.copy_(wave(p.shape, a, 1.3, math.sqrt(3 / p[0].numel())))
        model.alphas_normal.copy_(wave(model.alphas_normal.shape, 0.31, 0.9, 0.5))
        model.alphas_reduce.copy_(wave(model.alphas_reduce.shape, 0.51, 0.9, 0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    args = SimpleNamespace(
        momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3, grad_clip=5.0
    )
    return model, optimizer, args


def cnn_batches(config, s):
    B, HW, classes = config["B"], config["HW"], config["classes"]
    index = torch.arange(B)
    return (
        wave((B, 3, HW, HW), 0.37 + 0.05 * s, 0.11),
        (3 * index + s) % classes,
        wave((B, 3, HW, HW), 0.53 + 0.05 * s, 0.17),
        (5 * index + 1 + s) % classes,
    )


def rnn(config, **options):
    H = config["H"]
    model = RNNModelSearch(config["V"], H, H, H, 0.0, 0.0, 0.0, 0.0, 0.0, **options).double()
    with torch.no_grad():
        for t, p in enumerate(model.parameters()):
            p.copy_(wave(p.shape, 0.7 + 0.01 * t, 1.3, config["wscale"]))
        model.weights.copy_(wave(model.weights.shape, 0.31, 0.9, 0.5))
    optimizer = torch.optim.SGD(model.parameters(), config["lr"], weight_decay=5e-7)
    args = SimpleNamespace(wdecay=5e-7, clip=config["clip"], arch_lr=3e-3, arch_wdecay=1e-3)
    return model, optimizer, args


def rnn_batches(config, s):
    V, B, T = config["V"], config["B"], config["T"]
    i = torch.arange(T * B)
    return tuple(((m * i + c) % V).view(T, B) for m, c in [(7, 3 * s), (11, 1 + s), (5, 2 + s), (13, 4 + s)])


def rnn_loss(model, hidden, x, y):
    """The weight step's objective: negative log-likelihood and temporal activation regularisation."""
    log_prob, hidden, raw_outputs, _ = model(x, hidden, return_h=True)
    raw_loss = nn.functional.nll_loss(log_prob.view(-1, log_prob.size(2)), y.reshape(-1))
    h = raw_outputs[-1]
    return raw_loss, raw_loss + 1e-3 * (h[1:] - h[:-1]).pow(2).mean(), hidden
