"""Hardware counters of the five heaviest kernels, read by ``ncu``."""

from __future__ import annotations

import csv
import io

from bench.gpu.stage import Check, NotRun, Row
from bench.gpu.tools import find, module, output

METRICS = {
    "gpu__time_duration.sum": "duration",
    "dram__bytes_read.sum": "read",
    "dram__bytes_write.sum": "written",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "dram_pct",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_pct",
    "launch__registers_per_thread": "registers",
}
SECONDS = 90.0


def run(check: Check) -> None:
    """Profile; a row a kernel.

    Raises:
        NotRun: there is no ``ncu``, or it cannot read the counters here.
    """
    target = module("heaviest", *(["--rehearse"] if check.rehearse else []))
    # The clocks are left as they are.
    options = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    command = [find("ncu"), *options, "--metrics", ",".join(METRICS), *target]
    status, text = output(command, SECONDS)
    rows = parsed(text)
    if not rows:
        reasons = [line for line in text.splitlines() if line.startswith("==ERROR==")]
        raise NotRun(f"ncu counted nothing (exit status {status}): {' '.join(reasons) or 'see the log'}")
    for row in rows:
        check.row(**row)


def parsed(text: str) -> list[Row]:
    """Return a row a kernel of ncu's raw page as CSV: a line of names, one of units, one a kernel."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = list(csv.reader(io.StringIO("\n".join(line for line in lines[start:] if line.startswith('"')))))
    names, units, *kernels = table
    rows = []
    for values in kernels:
        found = dict(zip(names, zip(values, units, strict=True), strict=True))
        row: Row = {"kernel": found["Kernel Name"][0], "grid": found["Grid Size"][0]}
        for metric, name in METRICS.items():
            if metric in found:
                row[name] = " ".join(found[metric]).strip()
        rows.append(row)
    return rows
