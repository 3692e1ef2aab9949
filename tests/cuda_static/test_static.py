"""Every kernel of csrc/cuda compiles for GPUs that are not here, does nothing forbidden, and stays lean."""
# ruff: noqa: E402 - what follows needs Triton

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton brings the disassembler along")

import needs
import nvidia_code

import cuda_static
from cuda_static import CSRC, FLAGS, NVCC, SOURCES, TARGETS, manifest

PLANTED = Path(__file__).parent / "planted.cu"

if shutil.which(NVCC) is None:
    pytest.skip(f"no compiler {NVCC}", allow_module_level=True)
if torch.version.cuda is None:
    pytest.skip("torch was built without CUDA, which the library links with", allow_module_level=True)


@pytest.fixture(scope="module")
def kernels():
    return cuda_static.built()


@pytest.fixture(scope="module")
def planted():
    return cuda_static.examined(PLANTED)


def complaints(kernels, sources):
    parameters = cuda_static.declared(sources)
    return [text for kernel in kernels for text in kernel.complaints(parameters[kernel.template])]


def test_every_kernel_is_compiled_for_every_target(kernels):
    declared = cuda_static.declared([*SOURCES, *CSRC.rglob("*.h")])
    for target in TARGETS:
        assert {kernel.template for kernel in kernels if kernel.target == target} == declared.keys()


LOADED = """
import sys
import torch
import dartsfast.fused.encode
import dartsfast.ops
torch.ops.load_library(sys.argv[1])
print(*(name for name in sys.argv[2:] if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")))
"""


def test_the_library_finds_all_of_its_symbols_and_has_every_operator(kernels):
    """As a process without a GPU loads it: a symbol that nothing has is an error there."""
    sources = "".join(file.read_text() for file in CSRC.glob("ops/*.cpp"))
    operators = re.findall(r'm\.impl\("(\w+)"', sources)
    names = [f"dartsfast::{name}" for name in operators]
    command = [sys.executable, "-c", LOADED, str(cuda_static.LIBRARY), *names]
    missing = subprocess.run(command, capture_output=True, text=True, cwd=cuda_static.ROOT)
    assert missing.returncode == 0, missing.stderr
    assert len(names) > 20 and missing.stdout.split() == []


def test_kernels_do_nothing_that_is_forbidden(kernels):
    found = complaints(kernels, [*SOURCES, *CSRC.rglob("*.h")])
    assert not found, "\n".join(found)


def test_kernels_need_no_more_than_the_manifest_says(kernels):
    known = needs.read(manifest.file())
    if known is None:
        pytest.skip(f"no {manifest.file().name}: tests/cuda_static/manifest.py writes it")
    found = needs.worse(manifest.table(kernels), known)
    assert not found, "\n".join(found)


def test_kernels_with_few_warps_have_a_reason(kernels):
    few = {
        kernel.template
        for kernel in kernels
        if kernel.usage.occupancy < manifest.FEW_WARPS and "double" not in kernel.name
    }
    assert few == manifest.REASONS.keys()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        ("spilling_kernel", "spills"),
        ("spilling_kernel", "bytes of stack"),
        ("indexed_kernel", "bytes of stack"),
        ("constant_kernel<float>", "float64 instructions"),
        ("atomic_kernel", "atomics that are not of integers"),
        ("shared_atomic_kernel", "atomics that are not of integers"),
        ("narrow_kernel<float, 4>", "no load of 16 bytes"),
        ("narrow_kernel<float, 4>", "no store of 16 bytes"),
        ("narrow_kernel<double, 2>", "no load of 16 bytes"),
        ("wide_kernel<float, true>", "no load of 16 bytes"),
        ("halves_kernel<float, 4, true>", "no access of 8 bytes"),
        ("unbounded_kernel", "no __launch_bounds__"),
    ],
)
def test_planted_mistakes_are_found(planted, kernel, complaint, target):
    found = complaints(planted, [PLANTED])
    assert any(text.startswith(f"{kernel} on {target}: ") and complaint in text for text in found), found


RIGHT = {
    "right_kernel<float, 4>",
    "right_kernel<double, 2>",
    "constant_kernel<double>",
    "narrow_kernel<float, 1>",
    "halves_kernel<float, 4, false>",
    "wide_kernel<float, false>",
}


def test_right_kernels_have_no_complaints(planted):
    right = [kernel for kernel in planted if kernel.name in RIGHT]
    assert len(right) == len(RIGHT) * len(TARGETS) and complaints(right, [PLANTED]) == []


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_kernel_needs_is_read(planted, target):
    for name, size in (("right_kernel<float, 4>", 4), ("right_kernel<double, 2>", 8)):
        (kernel,) = (kernel for kernel in planted if (kernel.name, kernel.target) == (name, target))
        used = kernel.usage
        assert kernel.threads == 256 and used.shared == 100 * size and used.occupancy == 1
        assert used.loads == used.stores == {16: 1} and used.narrow == 0 and len(used.atomics) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_products_and_sums_are_not_contracted(target):
    assert "-fmad=false" in FLAGS
    codes = nvidia_code.codes(cuda_static.compiled(PLANTED, target))
    done = nvidia_code.operations(codes.values(), target)
    (right,) = (one for name, one in zip(codes, done, strict=True) if "right_kernelIf" in name)
    kinds = [operation.split(".")[0] for operation in right]
    assert kinds.count("FMUL") == kinds.count("FADD") == 4 and "FFMA" not in kinds


def test_a_kernel_that_no_launcher_uses_is_missed(tmp_path):
    source = tmp_path / "unused.cu"
    source.write_text(
        "template <class T, int V>\n"
        "__global__ void __launch_bounds__(2 * sizeof(T)) a_kernel(T* x) { *x = V; }\n"
        "__global__ void b_kernel(int* x) { *x = 1; }\n"
    )
    assert cuda_static.declared([source]) == {"a_kernel": ["T", "V"], "b_kernel": []}
    assert {kernel.template for kernel in cuda_static.examined(source)} == {"b_kernel"}


def test_a_name_that_would_be_missed_is_refused(tmp_path):
    source = tmp_path / "named.cu"
    source.write_text("__global__ void named(int* x) { *x = 1; }\n")
    with pytest.raises(AssertionError, match="names of kernels end in _kernel"):
        cuda_static.declared([source])
