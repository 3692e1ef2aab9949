"""Build hook of the native extension; everything else is declared in pyproject.toml.

The package installs and works without it: where no compiler or no torch is at hand while building,
the extension is left out aloud, and `dartsfast doctor` says so. DARTSFAST_SANITIZE=address
(or undefined) builds it with that sanitizer.
"""

import os
import subprocess
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def extension():
    """Return setup()'s arguments for the extension; none without torch."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        print(f"dartsfast: building without native kernels, torch is not at hand: {error}")
        return {}

    class Build(BuildExtension):
        def build_extensions(self):
            # ninja reports every failure as RuntimeError, and a compiler that cannot say its version fails
            # as a process; an optional extension may only fail to compile.
            try:
                super().build_extensions()
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                self.warn(f"dartsfast: building without native kernels: {error}")

    sanitize = os.environ.get("DARTSFAST_SANITIZE")
    # With checks in them the unrolled kernels take a compiler a quarter of an hour at -O3 -g.
    extra = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-O1", "-g0"] if sanitize else []
    native = CppExtension(
        "dartsfast._C",
        sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cpu/*.cpp")),
        depends=sorted(str(path) for path in ROOT.glob("csrc/**/*.[hi]*")),
        # No contraction and no fast-math: the order of operations is part of each op's contract.
        extra_compile_args=["-O3", "-std=c++20", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-g0", *extra],
        extra_link_args=extra[:1],
        define_macros=[("TORCH_TARGET_VERSION", "0x020d000000000000"), ("Py_LIMITED_API", "0x030A0000")],
        py_limited_api=True,
        optional=True,
    )
    return {
        "ext_modules": [native],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension())
