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

FEW_WARPS = 0.5
"""Of the warps that a multiprocessor holds: a kernel of floats with fewer has a reason."""
REASONS = {
    "branch_conv_kernel": "taps and 16 sums a thread; several wide loads of its own are in flight",
    "branch_conv_tile_kernel": "64 sums a thread: a load from shared memory serves several fma",
    "resident_kernel": "32 sums a thread, an image in shared memory: one block",
    "depthwise_adjoint_kernel": "addresses of a gather; a tap's two loads depend on nothing before them",
    "pointwise_adjoint_kernel": "16 sums and the next slice's loads a thread: three blocks",
    "pointwise_grad_kernel": "depthwise outputs made again beside the sums; 16 bits need most",
    "gemm_kernel": "16 sums and the next depth's loads a thread",
    "locked_linear_kernel": "as gemm_kernel, with 8 sums and rows looked up in a list",
    "mixed_sum_kernel": "four pixels in flight a thread, mean and rstd loaded once",
    "mixed_sum_backward_kernel": "g stays for all branches, of which several z are in flight",
    "pool3x3_kernel": "nine taps of four channels in registers at once, as wide loads",
    "pool3x3_backward_kernel": "nine windows' shares a thread; two or three blocks, bound by memory",
}
"""Kernels of floats with few warps, and what their registers are for."""


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
    needs.compare(table(cuda_static.built()), file(), "--write" in sys.argv)
