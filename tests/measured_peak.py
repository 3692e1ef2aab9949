"""Run as a process: prints the bytes of resident memory that a pass of a CNN takes at most above idle."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from dartsfast.cnn.model_search import Network


def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(images, of, options, halved=None):
    torch.set_num_threads(1)
    options["storage_dtype"] = halved and getattr(torch, halved)
    model = Network(num_classes=10, criterion=nn.CrossEntropyLoss(), backend="cpu", **options)
    groups = {"alphas": model.arch_parameters(), "weights": list(model.parameters())}
    wanted = [t for name, group in groups.items() for t in group if of in (name, "both")]
    for group in groups.values():
        for t in group:
            t.requires_grad_(any(t is one for one in wanted))

    def run(x):
        loss = model._loss(x, torch.zeros(len(x), dtype=torch.int64))
        torch.autograd.grad(loss, wanted, allow_unused=True)

    x = torch.randn(images)
    run(x)  # what torch and the kernels load and keep once, and programs
    torch.ops.dartsfast.empty_cache()
    Path("/proc/self/clear_refs").write_text("5")  # the highest is from now on
    idle = resident("VmRSS")
    run(x)
    return resident("VmHWM") - idle


if __name__ == "__main__":
    print(measure(*json.loads(sys.argv[1])))
