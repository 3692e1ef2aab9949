"""What a run runs on, and how much memory it has taken."""

from __future__ import annotations

import platform
import resource
import sys
from importlib import metadata
from pathlib import Path

import torch

from dartsfast import ranks
from dartsfast.backends import native

PACKAGES = ("dartsfast", "torch", "triton", "numpy", "torchvision")


def environment(device: torch.device) -> dict[str, str]:
    """Return versions, device, processor, threads and instruction set, by what they are called."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    found["processor"] = _processor()
    found["threads"] = str(torch.get_num_threads())
    # Why there are none, `dartsfast doctor` says.
    kernels = native.load() is None
    found["instruction set"] = torch.ops.dartsfast.cpu_instruction_set() if kernels else "no kernels for CPUs"
    if ranks.size() > 1:
        found["processes"] = str(ranks.size())
    found["device"] = str(device)
    if device.type == "cuda":
        found["device"] += f", {torch.cuda.get_device_name(device)}"
        found["CUDA"] = str(torch.version.cuda)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the most memory that this process has held, in bytes: ``resident``, and on a GPU ``device``."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"resident": resident if sys.platform == "darwin" else 1024 * resident}
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found
