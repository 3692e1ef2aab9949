"""Small search problems for tests of the bilevel engine, from the golden figures' networks."""

import torch
from golden_inputs import cnn, cnn_batches, load, rnn, rnn_batches

from dartsfast.cnn.architect import Architect as CNNArchitect
from dartsfast.rnn.architect import Architect as RNNArchitect


class BoomError(RuntimeError):
    pass


def cnn_problem(preset="code"):
    config = load("cnn_a2")["config"]
    model, optimizer, args = cnn(config, backend="reference")
    x, y, xv, yv = cnn_batches(config, 0)
    architect = CNNArchitect(model, args, preset=preset)

    def step(unrolled):
        architect.step(x, y, xv, yv, 0.025, optimizer, unrolled)

    return model, optimizer, architect, lambda: model._loss(x, y), lambda: model._loss(xv, yv), step


def rnn_problem(preset="code", **dropouts):
    config = load("rnn_a2")["config"]
    model, optimizer, args = rnn(config, backend="reference")
    for name, value in dropouts.items():
        owner = model.rnns[0] if name in ("dropouth", "dropoutx") else model
        setattr(owner, name, value)
    hidden = model.init_hidden(config["B"])
    x, y, xv, yv = rnn_batches(config, 0)
    architect = RNNArchitect(model, args, preset=preset)

    def step(unrolled):
        return architect.step(hidden, x, y, hidden, xv, yv, optimizer, unrolled)

    train = lambda: model._loss(hidden, x, y)[0]  # noqa: E731
    valid = lambda: model._loss(hidden, xv, yv)[0]  # noqa: E731
    return model, optimizer, architect, train, valid, step


PROBLEMS = {"cnn": cnn_problem, "rnn": rnn_problem}


def bits(tensors):
    return [t.detach().clone() for t in tensors]


def same_bits(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
