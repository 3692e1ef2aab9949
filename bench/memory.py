"""How much memory a peer's iterations take above what its model, data and optimisers occupy.

``python -m bench.memory NETWORK PEER ORDER THREADS SIZE`` (SIZE in JSON) measures in its own process, where
nothing was freed that an iteration could take again, and prints the megabytes.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from bench.machine import ROOT
from bench.peers import Workload
from bench.workloads import WORKLOADS

STATUS = Path("/proc/self/status")
ITERATIONS = 2  # SGD's momentum is there from the second on
LIMIT_SECONDS = 3600  # for a peer that compiles, which may go on for hours


def peak_megabytes(network: str, peer: str, order: int, size: Any) -> float:
    """Measure in a process of its own.

    Raises:
        RuntimeError: the peer cannot run or takes over :data:`LIMIT_SECONDS`, or there is no /proc to read.
    """
    given = json.dumps(dataclasses.asdict(size))
    arguments = [network, peer, str(order), str(torch.get_num_threads()), given]
    command = [sys.executable, "-m", "bench.memory", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{ITERATIONS} iterations took over {LIMIT_SECONDS} s") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise RuntimeError(last[0].strip())
    return float(done.stdout)


class Sampler(threading.Thread):
    """Reads the process's resident memory every 5 ms until stopped; ``peak`` is the largest, megabytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = resident_megabytes()
        self._finished = threading.Event()

    def run(self) -> None:
        """Sample until :meth:`finish`."""
        while not self._finished.wait(0.005):
            self.peak = max(self.peak, resident_megabytes())

    def finish(self) -> float:
        """Stop and return the peak."""
        self._finished.set()
        self.join()
        return max(self.peak, resident_megabytes())


def resident_megabytes() -> float:
    """Return VmRSS, in MB of 10^6 bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def _measure(workload: Workload, peer: str, order: int, size: Any) -> float:
    iteration = workload.iteration(workload.peers[peer], size)
    idle = resident_megabytes()
    sampler = Sampler()
    sampler.start()
    for _ in range(ITERATIONS):
        iteration.run(order)
    return sampler.finish() - idle


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    measured = WORKLOADS[sys.argv[1]]
    size = dataclasses.replace(measured.size, **json.loads(sys.argv[5]))
    print(_measure(measured, sys.argv[2], int(sys.argv[3]), size))
