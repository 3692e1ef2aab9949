"""How much memory a peer's iterations take above what its model, data and optimisers occupy.

``python -m bench.memory PEER ORDER THREADS SIZE`` (SIZE in JSON) measures in its own process, where
nothing was freed that an iteration could take again, and prints the megabytes.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import torch

from bench.machine import ROOT
from bench.peers import PEERS, Iteration, Size

STATUS = Path("/proc/self/status")
ITERATIONS = 2  # SGD's momentum is there from the second on
LIMIT_SECONDS = 3600  # for a peer that compiles, which may go on for hours


def peak_megabytes(peer: str, order: int, size: Size) -> float:
    """Measure in a process of its own.

    Raises:
        RuntimeError: the peer cannot run or takes over :data:`LIMIT_SECONDS`, or there is no /proc to read.
    """
    arguments = [peer, str(order), str(torch.get_num_threads()), json.dumps(dataclasses.asdict(size))]
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


def _measure(peer: str, order: int, size: Size) -> float:
    iteration = Iteration(PEERS[peer], size)
    idle = resident_megabytes()
    sampler = Sampler()
    sampler.start()
    for _ in range(ITERATIONS):
        iteration.run(order)
    return sampler.finish() - idle


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(_measure(sys.argv[1], int(sys.argv[2]), Size(**json.loads(sys.argv[4]))))
