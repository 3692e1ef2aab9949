"""How much memory a peer's iterations take above what its model, data and optimisers occupy.

``python -m bench.memory NETWORK PEER ORDER THREADS DEVICE SIZE`` (SIZE in JSON) measures in its own process,
where nothing was freed that an iteration could take again, and prints the megabytes. A tiny iteration comes
first: what torch and the kernels load once is there before.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import torch

from bench.device import Device, open_device
from bench.machine import ROOT
from bench.peers import Workload
from bench.workloads import MEASURED

ITERATIONS = 2  # SGD's momentum is there from the second on
LIMIT_SECONDS = 3600  # for a peer that compiles, which may go on for hours


def peak_megabytes(network: str, peer: str, order: int, size: Any, device: str) -> float:
    """Measure in a process of its own.

    Raises:
        RuntimeError: the peer cannot run or takes over :data:`LIMIT_SECONDS`, or there is no /proc to read.
    """
    given = json.dumps(dataclasses.asdict(size))
    arguments = [network, peer, str(order), str(torch.get_num_threads()), device, given]
    command = [sys.executable, "-m", "bench.memory", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{ITERATIONS} iterations took over {LIMIT_SECONDS} s") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise RuntimeError(last[0].strip())
    return float(done.stdout)


def _measure(workload: Workload, peer: str, order: int, size: Any, device: Device) -> float:
    chosen = workload.peers[peer]
    if not chosen.compiled:  # which would take minutes more
        workload.iteration(chosen, workload.gate, device=device.place).run(order)
    iteration = workload.iteration(chosen, size, device=device.place)

    def run() -> None:
        for _ in range(ITERATIONS):
            iteration.run(order)

    with device.exact():
        return device.peak_megabytes(run)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    measured = MEASURED[sys.argv[1]]
    size = dataclasses.replace(measured.size, **json.loads(sys.argv[6]))
    print(_measure(measured, sys.argv[2], int(sys.argv[3]), size, open_device(sys.argv[5])))
