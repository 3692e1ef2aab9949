"""What is installed here, which devices and backends can be used, and why the others cannot."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

import dartsfast.ops  # noqa: F401 - chooses the instruction set that is reported
from dartsfast.backends import (
    BACKENDS,
    PREFERENCE,
    availability,
    candidates,
    instruction_set,
    native,
    selfcheck,
    triton,
)
from dartsfast.backends.instruction_set import AGREES
from dartsfast.errors import BackendError

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
    "onnx",
    "onnxscript",
)


def diagnosis() -> list[tuple[str, str]]:
    """Return (what, how it is) lines: versions, devices, backends with reasons, what ``auto`` takes."""
    lines = [("dartsfast", _version("dartsfast")), ("python", platform.python_version())]
    lines += [(name, _version(name)) for name in PACKAGES]
    lines.append(("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads, {_simd()}"))
    lines.append(("instruction sets", _instruction_sets()))
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
        taken = next(found.backend for found in candidates(device) if found.available)
        lines.append((f"auto on {device}", taken))
    return lines


def deep_diagnosis() -> list[tuple[str, str]]:
    """Return a line for every operator and device that kernels serve: how far it is from its oracle."""
    devices = {name for name in ("cpu", "cuda") if availability(name).available}
    if availability("triton").available:
        devices |= set(triton.DEVICES)
    lines = []
    for device in sorted(d for d in devices if d == "cpu" or torch.get_device_module(d).is_available()):
        for name in selfcheck.SAMPLES:
            lines.append((f"{name} on {device}", _verdict(name, torch.device(device))))
    return lines


def _verdict(name: str, device: torch.device) -> str:
    try:
        found = selfcheck.difference(name, device)
    except BackendError as error:
        return f"FAILED: {error}"
    return f"{'ok' if found <= selfcheck.tolerance(name) else 'WRONG'}: {found:.1e} from the oracle"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _instruction_sets() -> str:
    """Say of each instruction set of this processor whether it serves, could, or was refused and why."""
    if native.load() is not None:
        return "none: see backend cpu"
    serves, found = torch.ops.dartsfast.cpu_instruction_set(), instruction_set.choose(native.LIBRARY)
    words = {serves: "in use", **{name: f"REFUSED: {why}" for name, why in found.items() if why != AGREES}}
    known = ", ".join(
        f"{name} ({words[name]})" if name in words else name for name in instruction_set.names()
    )
    if platform.machine().lower() in ("x86_64", "amd64"):
        return known
    return f"{known}; {platform.machine()} has no kernels of its own"


def _simd() -> str:
    return torch.backends.cpu.get_cpu_capability()
