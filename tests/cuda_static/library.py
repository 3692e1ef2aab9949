"""Builds the library of the kernels for CUDA as setup.py does, without that of the kernels for CPUs.

``python tests/cuda_static/library.py FOLDER`` leaves the library in the folder, its objects in the folder's
``csrc``. What is up to date there is not compiled again.
"""

import os
import runpy
import sys
from pathlib import Path

from setuptools import Distribution

ROOT = Path(__file__).parents[2]


def build(folder):
    """Build into ``folder``, for the architectures that are built for where there is no GPU."""
    made = runpy.run_path(str(ROOT / "setup.py"))
    os.environ.pop("TORCH_CUDA_ARCH_LIST", None)
    made["find_toolkit"]()  # before torch looks for it
    from torch.utils import cpp_extension

    extension = made["cuda"](cpp_extension)
    command = cpp_extension.BuildExtension(Distribution({"name": "dartsfast", "ext_modules": [extension]}))
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    os.chdir(ROOT)  # sources are relative to it
    command.run()


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
