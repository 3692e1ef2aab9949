"""What every kernel needs, kept by Triton's version: ``python tests/triton_ladder/manifest.py --write``.

A row is a kernel in a case of ``variants`` on a target: registers of a thread, bytes of shared memory,
occupancy, and accesses to global memory of less than 16 bytes; each the worst of the case's launches.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.errors import TritonError

FILE = Path(__file__).parent / "manifests" / f"{triton.__version__}.json"
WORKERS = 2
TOGETHER = 16  # variants that share a job


@dataclass(frozen=True)
class Examined:
    """What was found out of one variant on one target."""

    rows: dict  # kernel -> (registers, shared, occupancy, narrow)
    complaints: list
    configurations: set  # of launches


def examine(labels, target):
    """Compile variants for a target and read the machine code of all in one go: {label: Examined}."""
    from aot import compiled
    from machine_code import usages
    from variants import VARIANTS, places

    chosen, found = places(target), {}
    for label in labels:
        try:
            found[label] = compiled(VARIANTS[label].launch, target, chosen[label])
        except (RuntimeError, TritonError) as error:  # what Triton, its passes and its assembler raise
            raise RuntimeError(f"{label} on {target}: {error}") from error
    kernels = {kernel.hash: kernel for launches in found.values() for kernel in launches}
    used = dict(zip(kernels, usages(list(kernels.values())), strict=True))
    return {label: _examined(label, launches, used) for label, launches in found.items()}


def _examined(label, launches, used):
    from machine_code import complaints
    from variants import VARIANTS

    variant, rows, wrong = VARIANTS[label], {}, []
    for kernel in {kernel.hash: kernel for kernel in launches}.values():
        need = used[kernel.hash]
        row = need.registers, need.shared, need.occupancy, need.narrow
        rows[kernel.name] = _worst(row, rows.get(kernel.name, row))
        found = complaints(kernel, need, variant.wide)
        if variant.precision == "ieee" and "tf32" in kernel.asm.get("ptx", ""):
            found.append(f"{kernel.name} on {kernel.target}: products in TF32")
        wrong += [f"{label}: {text}" for text in found]
    return Examined(rows, wrong, {launch.configuration for launch in launches})


def jobs():
    """Yield (labels, target): what a worker takes at a time.

    The disassembler of NVIDIA's code takes half a second to start, so some variants share a job. AMD's need
    none: they come last and one by one, the dearest first, so that the workers end together.
    """
    from aot import TARGETS
    from variants import places

    for target in TARGETS:
        labels, size = list(places(target)), 1 if target.startswith("gfx") else TOGETHER
        for first in range(0, len(labels), size):
            yield labels[first : first + size], target


def examine_all():
    """Return {(labels, target): future of what ``examine`` returns}, all done."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, context) as pool:
        return {(*labels, target): pool.submit(examine, labels, target) for labels, target in jobs()}


def table(examined):
    """Return {"label: kernel": {target: row}} of what ``examine_all`` returned."""
    rows = {}
    for (*_, target), future in examined.items():
        for label, found in future.result().items():
            for kernel, row in found.rows.items():
                rows.setdefault(f"{label}: {kernel}", {})[target] = list(row)
    return rows


def configurations(examined, target):
    """Return the configurations that were compiled for ``target``."""
    results = [future.result() for (*_, of), future in examined.items() if of == target]
    return {one for result in results for found in result.values() for one in found.configurations}


def _worst(a, b):
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from manifest import examine_all as examine_all_importable  # workers import it by this name
    from needs import compare

    found = table(examine_all_importable())
    compare(found, FILE, "--write" in sys.argv)
