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
    checks = [f"-fsanitize={sanitize}"] if sanitize else []
    # With checks in them the unrolled kernels take a compiler a quarter of an hour at -O3.
    level = ["-O1", "-fno-omit-frame-pointer", *checks] if sanitize else ["-O3"]
    warnings = ["-Wall"]
    # Python's own flags ask for symbols: the library would be nine times as large.
    language = ["-std=c++20", "-fvisibility=hidden", "-g0"]
    native = CppExtension(
        "dartsfast._C",
        sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("csrc/ops/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp"))),
        depends=sorted(str(path) for path in ROOT.glob("csrc/**/*.[hi]*")),
        include_dirs=[str(ROOT / "csrc/cpu")],  # where the operators find their kernels
        # No contraction and no fast-math: the order of operations is part of each op's contract.
        extra_compile_args=[*language, *level, *warnings, "-ffp-contract=off"],
        extra_link_args=checks,
        define_macros=[("TORCH_TARGET_VERSION", "0x020b000000000000"), ("Py_LIMITED_API", "0x030A0000")],
        py_limited_api=True,
        optional=True,
    )
    return {
        "ext_modules": [native],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension())
