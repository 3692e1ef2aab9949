"""What every CUDA C++ kernel needs, kept by nvcc's release: ``python tests/cuda_static/manifest.py --write``.

Rows are those of ``needs``. Occupancy is by registers and static shared memory, for a block of as many
threads as ``__launch_bounds__`` grants: machine code does not say what dynamic shared memory there will be.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import needs  # noqa: E402

import cuda_static  # noqa: E402


def file():
    """Return where the manifest of the nvcc at hand is or would be."""
    return Path(__file__).parent / "manifests" / f"{cuda_static.release()}.json"


def table(kernels):
    """Return {kernel: {target: row}}."""
    rows = {}
    for kernel in kernels:
        used, targets = kernel.usage, rows.setdefault(kernel.name, {})
        assert kernel.target not in targets, f"two kernels are {kernel.name}"
        targets[kernel.target] = [used.registers, used.shared, used.occupancy, used.narrow]
    return rows


if __name__ == "__main__":
    needs.compare(table(cuda_static.examined()), file(), "--write" in sys.argv)
