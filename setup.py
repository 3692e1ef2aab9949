"""Build hook of the native extensions; everything else is declared in pyproject.toml.

The package installs and works without them: where no compiler or no torch is at hand while building,
they are left out aloud, and `dartsfast doctor` says so. DARTSFAST_BUILD says what is built: `auto` (the
kernels for CPUs), `cpu` (the same, or an error), `cuda` (those for NVIDIA's GPUs too, or an error; nvcc
must be at hand, a GPU need not) or `none`. DARTSFAST_SANITIZE=address (or undefined) builds the kernels for
CPUs with that sanitizer.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent  # some setuptools call this file setup.py, and ninja runs elsewhere

WANTED = ("auto", "none", "cpu", "cuda")
ARCHITECTURES = "8.0;9.0+PTX"  # of GPUs, where none is at hand to ask
# No contraction and no fast-math: the order of operations is part of each op's contract.
# Python's own flags ask for symbols: the library would be nine times as large.
LANGUAGE = ["-std=c++20", "-fvisibility=hidden", "-g0", "-Wall", "-ffp-contract=off"]
NVCC = ["-std=c++20", "-O3", "-fmad=false"]  # tests compile kernels with these, too
MACROS = [("TORCH_TARGET_VERSION", "0x020b000000000000"), ("Py_LIMITED_API", "0x030A0000")]


def sources(*patterns):
    """Return the files of csrc that match, relative to the root."""
    return sorted(
        str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}")
    )


def native(cpp_extension, optional):
    """Return the extension of the operators on CPUs."""
    sanitize = os.environ.get("DARTSFAST_SANITIZE")
    checks = [f"-fsanitize={sanitize}"] if sanitize else []
    # With checks in them the unrolled kernels take a compiler a quarter of an hour at -O3.
    level = ["-O1", "-fno-omit-frame-pointer", *checks] if sanitize else ["-O3"]
    return cpp_extension.CppExtension(
        "dartsfast._C",
        sources("ops/*.cpp", "cpu/*.cpp"),
        depends=sources("**/*.[hi]*", "cuda/*.c*"),  # the latter for source distributions
        include_dirs=[str(ROOT / "csrc/cpu")],  # where the operators find their kernels
        extra_compile_args=[*LANGUAGE, *level],
        extra_link_args=checks,
        define_macros=MACROS,
        py_limited_api=True,
        optional=optional,
    )


def find_toolkit():
    """Set CUDA_HOME, which torch guesses from where nvcc lies, to where nvcc says that its toolkit is."""
    if "CUDA_HOME" in os.environ:
        return
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("dartsfast: DARTSFAST_BUILD=cuda needs nvcc: put it on PATH, or set CUDA_HOME")
    steps = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    for line in steps.splitlines():
        if line.startswith("#$ TOP="):
            os.environ["CUDA_HOME"] = str(Path(line.removeprefix("#$ TOP=").strip()).resolve())


def cuda(cpp_extension):
    """Return the extension of the same operators on NVIDIA's GPUs."""
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    host = ",".join(flag for flag in LANGUAGE if flag.startswith("-f"))
    return cpp_extension.CUDAExtension(
        "dartsfast._cuda",
        sources("ops/*.cpp", "cuda/*.cpp", "cuda/*.cu"),
        depends=sources("**/*.[hi]*"),
        include_dirs=[str(ROOT / "csrc/cuda")],
        extra_compile_args={
            "cxx": [*LANGUAGE, "-O2"],
            "nvcc": [*NVCC, f"-Xcompiler={host}"],
        },
        define_macros=[*MACROS, ("DARTSFAST_ON_CUDA", None), ("USE_CUDA", None)],
        py_limited_api=True,
    )


def extensions():
    """Return setup()'s arguments for the extensions; none without torch."""
    wanted = os.environ.get("DARTSFAST_BUILD", "auto")
    if wanted not in WANTED:
        raise SystemExit(f"dartsfast: DARTSFAST_BUILD must be one of {', '.join(WANTED)}, got {wanted!r}")
    if wanted == "none":
        return {}
    if wanted == "cuda":
        find_toolkit()  # before torch looks for it
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        if wanted != "auto":
            raise SystemExit(f"dartsfast: DARTSFAST_BUILD={wanted} needs torch: {error}") from error
        print(f"dartsfast: building without native kernels, torch is not at hand: {error}")
        return {}

    class Build(cpp_extension.BuildExtension):
        def build_extensions(self):
            # ninja reports every failure as RuntimeError, and a compiler that cannot say its version fails
            # as a process; an optional extension may only fail to compile.
            try:
                super().build_extensions()
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                if wanted != "auto":
                    raise
                self.warn(f"dartsfast: building without native kernels: {error}")

    modules = [native(cpp_extension, optional=wanted == "auto")]
    if wanted == "cuda":
        modules.append(cuda(cpp_extension))
    return {
        "ext_modules": modules,
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


if __name__ == "__main__":  # tests read the flags
    setup(**extensions())
