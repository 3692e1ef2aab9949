"""compute-sanitizer on small calls of every operator: accesses out of bounds, and races in shared memory.

Every tensor has an allocation of its own, so that a step beyond its end is one out of bounds.
"""

from __future__ import annotations

import os
import re

from bench.gpu.stage import Check, NotRun
from bench.gpu.tools import find, module, output

# Memory alone: torch tries calls of the driver that it expects may fail.
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
SECONDS = 60.0
# What racecheck ends with instead: "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)".
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")


def run(check: Check) -> None:
    """Run both tools; a row each.

    Raises:
        NotRun: there is no compute-sanitizer, or it says nothing of the program.
    """
    sanitizer = find("compute-sanitizer")
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    for tool, options in TOOLS.items():
        command = [sanitizer, "--tool", tool, *options, "--print-limit", "20"]
        status, text = output(
            [*command, *module("smallest", *(["--rehearse"] if check.rehearse else []))], SECONDS
        )
        found = SUMMARY.search(text)
        if found is None or "DONE" not in text:
            raise NotRun(f"compute-sanitizer --tool {tool} did not end (exit status {status}): see the log")
        check.row(tool=tool, found=int(found[1]))
        if int(found[1]):
            check.fail(f"{tool}: {found[0]}")
