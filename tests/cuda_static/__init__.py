"""Compiles CUDA C++ for GPUs that are not here, and reads what its kernels need and do from the machine code.

The kernels of the package are read from the objects of a build of their library, so that nothing is compiled
twice. A template that no launcher uses is not compiled: ``declared`` says what sources have.
"""

import fcntl
import os
import re
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import compiling
import nvidia_code
from nvidia_code import Usage

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
TO = ROOT / "build" / "cuda_static"
SOURCES = sorted(CSRC.glob("cuda/*.cu"))
TARGETS = ("sm_80", "sm_90")
NVCC = str(Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc") if "CUDA_HOME" in os.environ else "nvcc"
FLAGS = runpy.run_path(str(ROOT / "setup.py"))["NVCC"]
COMPILERS = "2"  # at a time
LIBRARY = TO / "dartsfast" / "_cuda.abi3.so"

IN_DOUBLE = {"fd_norm_kernel", "fd_norm_finish_kernel", "losses_kernel"}
"""Kernels of floats that work in double: the sum of millions of squares."""
NOT_INTEGER = ("F16", "BF16", "F32", "F64", "CAS")  # float addition in shared memory is a loop of CAS


@dataclass(frozen=True)
class Kernel:
    """A kernel's machine code for a target, read."""

    name: str  # mixed_sum_kernel<float, 4>
    target: str
    threads: int | None  # of a block, at most; None without __launch_bounds__
    usage: Usage

    @property
    def template(self):
        """The name without template arguments."""
        return self.name.partition("<")[0]

    def complaints(self, parameters):
        """Return what is wrong; ``parameters`` are the names of the template's, as ``declared`` says them."""
        used = self.usage
        in_double = self.template in IN_DOUBLE or "double" in self.name
        atomics = [name for name in used.atomics if _of_floats(name)]
        wrong = {
            "no __launch_bounds__": self.threads is None,
            f"{used.spills} spills": used.spills,
            f"{used.stack} bytes of stack": used.stack,
            f"{used.double} float64 instructions": used.double and not in_double,
            f"atomics that are not of integers: {', '.join(atomics)}": atomics,
            **self._narrow(parameters),
        }
        return [f"{self.name} on {self.target}: {what}" for what in wrong if wrong[what]]

    def _narrow(self, parameters):
        """Return where wide accesses are missing: a ``Pack<T, V>`` of 16 bytes or more is loaded and stored,
        and a kernel with WIDE loads rows at least. Where HALVES are stored, V or four of them are one access.
        """
        inner = re.findall(r"(?:[^<>,]|<[^<>]*>)+", self.name.partition("<")[2][:-1])
        given = dict(zip(parameters, map(str.strip, inner), strict=True))
        packs = (given.get("T"), given.get("V")) in {("float", "4"), ("float", "8"), ("double", "2")}
        rows = packs or given.get("WIDE") == "true"
        halves = given.get("HALVES") == "true"
        size = 2 * int(given.get("V", 4))
        used = self.usage
        return {
            "no load of 16 bytes": rows and 16 not in used.loads,
            "no store of 16 bytes": packs and 16 not in used.stores,
            f"no access of {size} bytes": rows and halves and size not in used.loads | used.stores,
        }


def release():
    """Return nvcc's release, such as ``13.0``.

    Raises:
        compiling.UnavailableError: There is no nvcc.
    """
    try:
        text = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise compiling.UnavailableError(f"no compiler {NVCC}") from error
    return re.search(r"release ([\d.]+)", text)[1]


def declared(sources):
    """Return {kernel: names of its template's parameters} of sources."""
    found = {}
    for source in sources:
        text = source.read_text().replace("template __global__", "")  # instantiations
        kernels = re.findall(r"(?:template <([^;{}]*)>\s*)?__global__[^;{}]*?\b(\w+_kernel)\(", text)
        assert len(kernels) == text.count("__global__"), f"{source.name}: names of kernels end in _kernel"
        found.update({name: re.findall(r"(\w+)(?:,|$)", parameters) for parameters, name in kernels})
    return found


def compiled(source, target):
    """Return the cubin of a source that is none of the package's, compiled with the flags of the build."""
    flags = [*FLAGS, f"-arch={target}", "-cubin"]
    name = f"{source.stem}-{target}.cubin"
    inputs, watched = [f"-I{CSRC / 'cuda'}", str(source)], [source, *CSRC.rglob("*.h")]
    return compiling.made(TO / release(), name, flags, inputs, watched, NVCC).read_bytes()


def library():
    """Return the library of the kernels for CUDA, built as the package's; the compiler says what is wrong."""
    TO.mkdir(parents=True, exist_ok=True)
    # Another process of the tests may be at it.
    with open(TO / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, str(Path(__file__).with_name("library.py")), str(TO)]
        subprocess.run(command, check=True, env={**os.environ, "MAX_JOBS": COMPILERS})
    return LIBRARY


def built():
    """Return the kernels of the library, for all targets."""
    library()
    cubins = [one for source in SOURCES for one in _embedded(TO / source.relative_to(ROOT).with_suffix(".o"))]
    return [kernel for target, cubin in cubins for kernel in read(cubin, target)]


def _embedded(file):
    """Return target and contents of each cubin within an object."""
    with tempfile.TemporaryDirectory() as folder:
        extract = [nvidia_code.TOOLS / "cuobjdump", "-xelf", "all", file]
        subprocess.run(extract, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return [(cubin.suffixes[-2][1:], cubin.read_bytes()) for cubin in sorted(Path(folder).iterdir())]


def read(cubin, target):
    """Return the kernels of a cubin."""
    codes = nvidia_code.codes(cubin)
    needs = nvidia_code.resources(cubin, target)
    operations = nvidia_code.operations(codes.values(), target)
    kernels = []
    for name, mangled, done in zip(_demangled(codes), codes, operations, strict=True):
        threads, need = nvidia_code.max_threads(cubin, mangled), needs[mangled]
        warps = -(-(threads or 1024) // 32)
        kernels.append(
            Kernel(name, target, threads, nvidia_code.usage(target, warps, need["SHARED"], need, done))
        )
    return kernels


def examined(source):
    """Return the kernels of a source that is none of the package's, for all targets."""
    return [kernel for target in TARGETS for kernel in read(compiled(source, target), target)]


def _of_floats(operation):
    return any(part.startswith(NOT_INTEGER) for part in operation.split("."))


def _demangled(names):
    """Return the names of kernels with short template arguments, without namespaces and arguments."""
    lines = subprocess.run(
        ["c++filt", "--no-params"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    return re.sub(r"\(anonymous namespace\)::|\b\w+::", "", lines).replace(" >", ">").splitlines()
