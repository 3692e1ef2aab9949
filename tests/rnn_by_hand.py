"""The training of a recurrent cell on plain tensors, from the original's formulas."""

import math

import torch

from dartsfast.rnn.genotypes import DARTS_V1


class ByHand:
    """The original's training step on plain tensors: masks, cell, losses, clip, decay, both optimisers."""

    def __init__(self, weights, options):
        self.options = options
        self.E, self.bias = weights["encoder.weight"].clone(), weights["decoder.bias"].clone()
        self.W0 = weights["rnns.0._W0"].clone()
        self.Ws = [weights[f"rnns.0._Ws.{i}"].clone() for i in range(len(DARTS_V1.recurrent))]
        self.ax = self.eta = None
        self.steps, self.mu = 0, 1.0

    def weights(self):
        return [self.E, self.W0, *self.Ws, self.bias]

    def run(self, x, h, training, E, W0, Ws):
        """Return raw outputs [T, B, D] and outputs after dropout, of tokens x [T, B] from h [B, D]."""
        o, B, D = self.options, x.shape[1], h.shape[1]

        def bernoulli(rate, *shape):
            if not training or not rate:
                return torch.ones(shape, dtype=torch.float64)
            return torch.empty(shape, dtype=torch.float64).bernoulli_(1 - rate) / (1 - rate)

        def uniform(rate):
            if not training:
                return torch.ones(B, D, dtype=torch.float64)
            return (torch.rand(B, D, dtype=torch.float64) + (1 - rate)).floor() / (1 - rate)

        embedded = (E * bernoulli(o.dropoute, len(E), 1))[x] * bernoulli(o.dropouti, 1, B, D)
        mx, mh = uniform(o.dropoutx), uniform(o.dropouth)
        f = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "identity": lambda z: z}
        raw = []
        for e in embedded:
            c, z = (torch.cat([e * mx, h * mh], 1) @ W0).split(D, 1)
            states = [h + torch.sigmoid(c) * (torch.tanh(z) - h)]
            for W, (name, j) in zip(Ws, DARTS_V1.recurrent, strict=True):
                s = states[j]
                c, z = ((s * mh) @ W).split(D, 1)
                states.append(s + torch.sigmoid(c) * (f[name](z) - s))
            h = sum(states[1:]) / 8
            raw.append(h)
        raw = torch.stack(raw)
        return raw, raw * bernoulli(o.dropout, 1, B, D)

    def nll(self, outputs, y, E, bias):
        logp = (outputs @ E.T + bias).log_softmax(-1)
        return -logp.gather(-1, y[..., None]).mean()

    def step(self, x, y, hiddens, rate, averaging):
        """Move the weights; return the plain loss and, of each part of the columns, the state after x."""
        o, parts, total, after = self.options, len(hiddens), 0.0, []
        leaves = [w.clone().requires_grad_() for w in self.weights()]
        E, W0, *Ws, bias = leaves
        for xs, ys, h in zip(x.chunk(parts, 1), y.chunk(parts, 1), hiddens, strict=True):
            raw, dropped = self.run(xs, h, True, E, W0, Ws)
            plain = self.nll(dropped, ys, E, bias)
            loss = plain + o.alpha * (dropped**2).mean() + o.beta * ((raw[1:] - raw[:-1]) ** 2).mean()
            (loss / parts).backward()
            total += plain.item() / parts
            after.append(raw[-1].detach())
        norm = math.sqrt(sum(w.grad.square().sum().item() for w in leaves))
        eta = rate
        if averaging:  # torch's averaged SGD takes the rate of the step before
            eta, self.eta = rate if self.eta is None else self.eta, rate
            eta = torch.tensor(eta).item()  # which it keeps as float32
        for w, leaf in zip(self.weights(), leaves, strict=True):
            w -= eta * (leaf.grad * min(1.0, o.clip / (norm + 1e-6)) + o.wdecay * w)
        if averaging:
            self.steps += 1
            if self.ax is None:
                self.ax = [torch.zeros_like(w) for w in self.weights()]
            for a, w in zip(self.ax, self.weights(), strict=True):
                a += torch.tensor(self.mu).item() * (w - a)
            self.mu = 1 / max(1, self.steps)
        return total, after

    def text_loss(self, columns, E, W0, *rest):
        """Return the mean loss of a text [rows, columns] after its first row, all at once."""
        *Ws, bias = rest
        h = torch.zeros(columns.shape[1], E.shape[1], dtype=torch.float64)
        _, outputs = self.run(columns[:-1], h, False, E, W0, Ws)
        return self.nll(outputs, columns[1:], E, bias).item()


def epoch_by_hand(model, columns, lengths, averaging):
    """Train as the original's ``train``; return the mean loss over rows."""
    o = model.options
    parts = 1 if o.small_batch_size == -1 else o.batch_size // o.small_batch_size
    hiddens = [torch.zeros(o.batch_size // parts, 6, dtype=torch.float64)] * parts
    i, total, rows = 0, 0.0, 0
    while i < len(columns) - 2:
        bptt = o.bptt if torch.rand((), generator=lengths).item() < 0.95 else o.bptt / 2
        length = max(5, int(bptt + 5 * torch.randn((), generator=lengths).item()))
        length = min(length, o.bptt + o.max_seq_len_delta)
        n = min(length, len(columns) - 1 - i)
        x, y = columns[i : i + n], columns[i + 1 : i + 1 + n]
        loss, hiddens = model.step(x, y, hiddens, o.lr * length / o.bptt, averaging)
        i, total, rows = i + length, total + loss * n, rows + n
    return total / rows
