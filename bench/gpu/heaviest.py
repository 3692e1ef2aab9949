"""The largest launch of each of the five heaviest kernels, once, between the profiler's start and stop.

``python -m bench.gpu.heaviest [--rehearse]``: what ``ncu --profile-from-start off`` is given to look at.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
import torch.cuda.profiler
import triton

from bench.cnn_peers import CNN
from bench.costs import Launch
from bench.gpu.cases import REHEARSED_SIZES
from bench.model import CARDS, count, launch_seconds
from bench.peers import Peer

ORDER, PEER = 1, "triton store"
KERNELS = 5


def chosen(launches: Sequence[Launch]) -> dict[str, int]:
    """Return the kernels that take most by the estimate, each with the number of its largest launch."""
    card = CARDS["H100 SXM"]
    groups: dict[str, list[Launch]] = {}
    for one in launches:
        if one.triton:
            groups.setdefault(one.name, []).append(one)
    names = sorted(groups, key=lambda name: -sum(launch_seconds(one, card) for one in groups[name]))
    return {n: max(range(len(groups[n])), key=lambda i: groups[n][i].bytes) for n in names[:KERNELS]}


def main() -> None:
    """Run an iteration, of which the chosen launches are profiled."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.heaviest")
    parser.add_argument("--rehearse", action="store_true")
    rehearse = parser.parse_args().rehearse
    size = REHEARSED_SIZES["cnn"] if rehearse else CNN.size
    launches, _ = count(CNN, PEER, ORDER, size)
    wanted = chosen(launches)
    for name, place in wanted.items():
        print(f"{name}: launch {place}", flush=True)
    if rehearse:
        return
    iteration = CNN.iteration(Peer("triton"), size, device=torch.device("cuda"))
    iteration.run(ORDER)  # compiles, checks the operators, and makes the optimisers' state
    torch.cuda.synchronize()
    launch, counts = triton.JITFunction.run, Counter[str]()

    def run(self: Any, *args: Any, **options: Any) -> None:
        name = self.fn.__name__
        torch.cuda.synchronize()
        with torch.cuda.profiler.profile() if wanted.get(name) == counts[name] else nullcontext():
            launch(self, *args, **options)
            torch.cuda.synchronize()
        counts[name] += 1

    with mock.patch.object(triton.JITFunction, "run", run):
        iteration.run(ORDER)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
