"""Run as a process: prints the bytes of resident memory that a pass takes at most above idle."""

import ctypes
import json
import sys
from pathlib import Path

import torch
from torch import nn

from dartsfast.cnn.model_search import Network
from dartsfast.rnn.model import search_loss
from dartsfast.rnn.model_search import RNNModelSearch


def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def cnn(shape, options):
    """Return a network and the loss of a pass over images of ``shape``."""
    if halved := options.pop("halved", None):
        options["storage_dtype"] = getattr(torch, halved)
    x = torch.randn(shape)
    model = Network(num_classes=10, criterion=nn.CrossEntropyLoss(), backend="cpu", **options)
    return model, lambda: model._loss(x, torch.zeros(len(x), dtype=torch.int64))


def rnn(shape, options):
    """Return a model and the loss of a weights' step over a text of ``shape``."""
    sizes, rest = options.pop("sizes"), options
    x = torch.randint(sizes[0], shape)
    model = RNNModelSearch(*sizes, backend="cpu", **rest)
    return model, lambda: search_loss(model, model.init_hidden(shape[1]), x, x, 1e-3)[0]


def measure(kind, shape, of, options):
    torch.set_num_threads(1)
    model, loss = {"cnn": cnn, "rnn": rnn}[kind](shape, options)
    groups = {"alphas": model.arch_parameters(), "weights": list(model.parameters())}
    wanted = [t for name, group in groups.items() for t in group if of in (name, "both")]
    for group in groups.values():
        for t in group:
            t.requires_grad_(any(t is one for one in wanted))

    def run():
        torch.autograd.grad(loss(), wanted, allow_unused=True)

    def above_idle():
        torch.ops.dartsfast.empty_cache()
        # What is free in the C library's heap would be taken again unseen.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda left: None)(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest is from now on
        idle = resident("VmRSS")
        run()
        return resident("VmHWM") - idle

    for _ in range(2):  # what torch and the kernels load and keep once, and programs
        run()
    # The least of three: pages that the system had taken away, and gives back meanwhile, count to a pass.
    return min(above_idle() for _ in range(3))


if __name__ == "__main__":
    print(measure(*json.loads(sys.argv[1])))
