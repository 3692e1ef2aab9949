"""Every kernel and configuration compiles for GPUs that are not here, and stays as lean as it was."""
# ruff: noqa: E402 - what follows needs Triton

import importlib
import pkgutil
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 makes kernels that cannot be compiled", allow_module_level=True)

import configurations
import dartsfast.kernels
import manifest
import needs
import toys
from aot import LARGE, TARGETS, compiled, launched
from dartsfast.kernels import rnn_node
from dartsfast.kernels.launch import launch
from machine_code import complaints, usages
from occupancy import occupancy
from op_cases import EDGE, Conv
from variants import Variant


@pytest.fixture(scope="module")
def examined():
    return manifest.examine_all()


def test_every_variant_compiles(examined):
    failures = [f"{key}: {future.exception()}" for key, future in examined.items() if future.exception()]
    assert not failures, "\n".join(failures)


def test_every_kernel_is_compiled_for_every_target(examined):
    modules = [
        importlib.import_module(f"dartsfast.kernels.{module.name}")
        for module in pkgutil.iter_modules(dartsfast.kernels.__path__)
    ]
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    rows = manifest.table(examined)
    for target in TARGETS:
        assert kernels == {key.split(": ")[1] for key, targets in rows.items() if target in targets}


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_configuration_that_heuristics_choose_is_compiled(examined, dtype, target):
    missing = configurations.reachable(dtype, target) - manifest.configurations(examined, target)
    assert not missing, "\n".join(map(str, sorted(missing)))


def test_of_a_configuration_the_launch_with_most_tensors_is_compiled():
    variant = Variant(Conv(2, 8, 8, 16, 16, 1, EDGE[:1], True, True), launches="largest")
    launches = launched(variant.launch, "sm_80")
    chosen = {launch.configuration: launch for launch in variant.chosen(launches, set()).values()}
    assert len(chosen) == len(variant.chosen(launches, set())) < len(launches)
    assert all(len(chosen[launch.configuration].tensors) >= len(launch.tensors) for launch in launches)
    known = launches[0].configuration
    new = replace(variant, launches="new").chosen(launches, {known}).values()
    assert {launch.configuration for launch in new} == chosen.keys() - {known}


def test_a_configuration_that_is_not_compiled_is_noticed(examined, monkeypatch):
    monkeypatch.setattr(rnn_node, "ROWS", 512)
    missing = configurations.reachable(torch.float64, "sm_80") - manifest.configurations(examined, "sm_80")
    assert {(name, storage) for name, _, storage in missing} == {
        ("rnn_node_kernel", "64 bits"),
        ("rnn_node_backward_kernel", "64 bits"),
    }


SPILLING = {"3.6.0": 8}
"""Launches for which the compiler of an older Triton has too few registers: slower, and right."""


def test_kernels_do_nothing_that_is_forbidden(examined):
    results = [found for future in examined.values() for found in future.result().values()]
    complaints = [text for found in results for text in found.complaints]
    spilling = {
        text.rpartition(": ")[0] for text in complaints if text.endswith((" spills", "bytes of stack"))
    }
    others = [text for text in complaints if text.rpartition(": ")[0] not in spilling]
    assert not others and len(spilling) <= SPILLING.get(triton.__version__, 0), "\n".join(complaints)


def test_kernels_need_no_more_than_the_manifest_says(examined):
    known = needs.read(manifest.FILE)
    if known is None:
        pytest.skip(f"no figures of Triton {triton.__version__}: tests/triton_ladder/manifest.py writes them")
    found = needs.worse(manifest.table(examined), known)
    assert not found, "\n".join(found)


# On AMD it takes a larger tile to run out of registers.
HEAVY = {
    "gfx942": {"TILE": 128, "n": 64, "num_warps": 2},
    "sm_80": {"TILE": 32, "n": 64, "num_warps": 1},
    "sm_90": {"TILE": 32, "n": 64, "num_warps": 1},
}


def toy(kernel, target, n=LARGE, offset=0, **meta):
    x = torch.empty(LARGE + offset)[offset:]
    (found,) = compiled(lambda: launch(kernel, (1,), x, x, n, **meta), target)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_a_right_kernel_has_no_complaints(target):
    kernel = toy(toys.double_kernel, target, BLOCK=1024)
    (used,) = usages([kernel])
    assert complaints(kernel, used, wide=True) == []
    assert used.registers < 40 and used.shared == 0 and used.occupancy > 0.9
    assert used.narrow == 0 and set(used.loads) == set(used.stores) == {16}
    assert kernel.name == "double_kernel" and kernel.constants == {"BLOCK": 1024}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kernel", "meta", "complaint"),
    [
        (toys.heavy_kernel, HEAVY, "bytes of stack"),
        (toys.heavy_kernel, HEAVY, "spills"),
        (toys.wide_kernel, {"BLOCK": 1024}, "float64 instructions"),
        (toys.atomic_kernel, {"BLOCK": 1024}, "atomic operations"),
        (toys.double_kernel, {"BLOCK": 1024, "n": 17, "offset": 1}, "-byte load"),
    ],
)
def test_planted_mistakes_are_found(kernel, meta, complaint, target):
    kernel = toy(kernel, target, **meta.get(target, meta))
    found = complaints(kernel, *usages([kernel]), wide=True)
    assert any(complaint in text for text in found), found


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_are_read_one_by_one(target):
    """The disassembler gets several at a time: none may be taken for its neighbour."""
    kernels = [toy(toys.double_kernel, target, BLOCK=1024), toy(toys.atomic_kernel, target, BLOCK=1024)]
    assert usages(kernels) == [*usages(kernels[:1]), *usages(kernels[1:])]
    assert [bool(used.atomics) for used in usages([*kernels, kernels[0]])] == [False, True, False]


def test_the_driver_is_put_back():
    before = triton.runtime.driver._active
    with pytest.raises(ZeroDivisionError):
        compiled(lambda: 1 / 0, "sm_80")
    assert triton.runtime.driver._active is before


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "share"),
    [
        ("sm_80", 4, 32, 0, 1),  # 65536 registers are 64 warps of 32 threads with 32
        ("sm_80", 4, 33, 0, 0.75),  # 40 a thread: 12 warps a partition, 12 blocks
        ("sm_80", 8, 255, 0, 0.125),  # 2 warps a partition
        ("sm_80", 1, 16, 0, 0.5),  # 32 blocks
        ("sm_80", 4, 16, 40 << 10, 0.25),  # 4 blocks of 41 KiB in 164
        ("sm_90", 4, 16, 40 << 10, 0.3125),  # 5 in 228
        ("sm_80", 4, 16, 163 << 10, 0.0625),
        ("sm_90", 16, 128, 100 << 10, 0.25),
        ("sm_90", 32, 64, 0, 0.5),
    ],
)
def test_occupancy(target, warps, registers, shared, share):
    assert occupancy(target, warps, registers, shared) == share


def test_a_manifest_tells_what_got_worse():
    known = {"a": {"sm_80": [32, 0, 1.0, 4]}, "b": {"sm_80": [32, 0, 1.0, 4]}}
    assert needs.worse(known, known) == []
    assert needs.worse({"a": {"sm_80": [40, 0, 1.0, 0]}}, {"a": known["a"]}) == []
    found = {"a": {"sm_80": [41, 16, 0.75, 5], "sm_90": [32, 0, 1.0, 4]}}
    assert needs.worse(found, known) == [
        "b is no longer compiled",
        "a on sm_80: registers 32 before, 41 now",
        "a on sm_80: bytes of shared memory 0 before, 16 now",
        "a on sm_80: occupancy 1.0 before, 0.75 now",
        "a on sm_80: narrow accesses 4 before, 5 now",
        "a on sm_90 is not in the manifest",
    ]
