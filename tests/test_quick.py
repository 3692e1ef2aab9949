"""A quick run leaves out what is long, and says so."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_quick_run_leaves_out_what_is_long_and_says_so():
    chosen = "tests/triton_ladder", "tests/test_toy.py"
    command = [sys.executable, "-m", "pytest", "--quick", "--collect-only", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run([*command, *chosen], cwd=HERE.parent, capture_output=True, text=True)
    collected, _, said = found.stdout.partition(" left out of a quick run ")
    assert "tests/test_toy.py::" in collected and "triton_ladder" not in collected, found.stdout
    names = [line.split(": ")[0] for line in said.splitlines() if ": " in line]
    assert {"cuda_static", "emulator", "test_search.py", "triton_ladder"} <= set(names)
    assert all((HERE / name).exists() for name in names)
