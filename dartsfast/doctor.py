"""What is installed here, which devices and backends can be used, and why the others cannot."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from dartsfast.backends import BACKENDS, PREFERENCE, availability, resolve_backend

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "torchvision",
    "rich",
    "matplotlib",
    "tensorboard",
    "scikit-image",
    "scikit-learn",
)


def diagnosis() -> list[tuple[str, str]]:
    """Return (what, how it is) lines: versions, devices, backends with reasons, what ``auto`` takes."""
    lines = [("dartsfast", _version("dartsfast")), ("python", platform.python_version())]
    lines += [(name, _version(name)) for name in PACKAGES]
    lines.append(("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads, {_simd()}"))
    count = torch.cuda.device_count()
    lines += [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(count)]
    if not count:
        built = torch.version.cuda
        lines.append(
            ("cuda", f"no device (torch is built for CUDA {built})" if built else "torch is a CPU build")
        )
    for name in BACKENDS:
        found = availability(name)
        lines.append((f"backend {name}", f"{'yes' if found.available else 'no'}: {found.reason}"))
    for device in PREFERENCE:
        taken = ", ".join(f"{net} {resolve_backend('auto', device, net)}" for net in ("cnn", "rnn"))
        lines.append((f"auto on {device}", taken))
    return lines


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _simd() -> str:
    return torch.backends.cpu.get_cpu_capability()
