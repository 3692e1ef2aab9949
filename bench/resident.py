"""How much of a process's memory is resident. Linux only."""

from __future__ import annotations

import threading
from pathlib import Path

STATUS = Path("/proc/self/status")


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
