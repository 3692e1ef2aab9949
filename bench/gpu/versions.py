"""What is installed, the device, and its ceilings: a copy and a float32 product."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata

import torch

from bench.device import CUDA, open_device
from bench.gpu.stage import Check
from bench.machine import ceilings, header

QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"


def run(check: Check) -> None:
    """Describe the machine, then measure it; the first row has ``capability``, such as 90, on a GPU."""
    device = open_device(check.place.type)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _version("triton"),
    }
    if isinstance(device, CUDA):
        found = torch.cuda.get_device_properties(device.place)
        versions |= {
            "gpu": found.name,
            "capability": 10 * found.major + found.minor,
            "multiprocessors": found.multi_processor_count,
            "gb": found.total_memory / 1e9,
            "l2_mb": found.L2_cache_size / 1e6,
        }
    check.row(**versions)
    check.row(**header(device))
    check.row(**{name: shutil.which(name) or "not on PATH" for name in ("nvcc", "ncu", "compute-sanitizer")})
    check.row(nvidia_smi=_nvidia_smi())
    check.row(**{name: value for name, value in _ceilings(check, device).items() if value is not None})


def _ceilings(check: Check, device: object) -> dict[str, float | None]:
    return ceilings(1 if check.rehearse else 5, device, quick=check.rehearse)  # type: ignore[arg-type]


def _nvidia_smi() -> str:
    """Return a line of the GPU's state, or why there is none."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"none: {error}"
    return done.stdout.strip() or done.stderr.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
