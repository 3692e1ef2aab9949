"""A script's search in two processes: weights under DistributedDataParallel, the alphas by the Architect."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network

WORLD = 2
RANK = """
import sys
import torch
from test_distributed import iterate
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.save(iterate(rank), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def batch(rank, seed):
    generator = torch.Generator().manual_seed(10 * seed + rank)
    return torch.randn(4, 3, 8, 8, generator=generator).double(), torch.randint(5, (4,), generator=generator)


def network():
    torch.manual_seed(0)
    return Network(4, 5, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2).double()


def iterate(rank=None):
    """Run two search iterations; alone, on the mean of the losses of all ranks' batches."""
    model = network()
    ranks = range(WORLD) if rank is None else [rank]
    parallel = model if rank is None else nn.parallel.DistributedDataParallel(model)
    model._loss = lambda xs, ys: sum(map(model._criterion, map(model, xs), ys)) / len(ranks)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    args = SimpleNamespace(
        momentum=0.9, weight_decay=3e-4, arch_learning_rate=0.05, arch_weight_decay=1e-3, grad_clip=0.5
    )
    architects = [Architect(model, args, preset=preset) for preset in ("code", "paper")]
    alphas = model.arch_parameters()
    found = []
    for i, (architect, unrolled) in enumerate(itertools.product(architects, (True, False))):
        (x, y), (x_valid, y_valid) = (zip(*[batch(r, 2 * i + v) for r in ranks], strict=True) for v in (0, 1))
        architect.step(x, y, x_valid, y_valid, 0.1, optimizer, unrolled=unrolled)
        found += [a.grad.clone() for a in alphas]
        optimizer.zero_grad()
        (sum(map(model._criterion, map(parallel, x), y)) / len(ranks)).backward()
        optimizer.step()
    return [*found, *(t.detach() for t in (*model.parameters(), *alphas))]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_search_as_one_does(pytestconfig, tmp_path):
    path = f"{pytestconfig.rootpath}:{pytestconfig.rootpath}/tests"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)],
            env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for first, second, alone in zip(*found, iterate(), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, alone, rtol=1e-7, atol=1e-10)
