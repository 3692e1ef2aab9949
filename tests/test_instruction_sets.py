"""Which instruction set serves, what is done about one that computes something else, and other processors."""

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import compiling
import instruction_sets
import pytest
import torch

from dartsfast import doctor
from dartsfast.backends import availability, instruction_set, native

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Keep what is found in a folder of the test, and choose anew in it and after it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DARTSFAST_SELFCHECK", raising=False)
    chosen = torch.ops.dartsfast.cpu_instruction_set()
    instruction_set.choose.cache_clear()
    yield tmp_path / "dartsfast" / "instruction_sets.json"
    instruction_set.choose.cache_clear()
    torch.ops.dartsfast.set_cpu_instruction_set(chosen)


def kept(cache):
    (found,) = json.loads(cache.read_text()).values()
    return found


def test_the_widest_serves_and_is_checked_once(cache, monkeypatch):
    widest = instruction_set.names()[0]
    torch.ops.dartsfast.set_cpu_instruction_set("portable")
    assert instruction_set.choose(native.LIBRARY) == {widest: "agrees"} == kept(cache)
    assert torch.ops.dartsfast.cpu_instruction_set() == widest
    instruction_set.choose.cache_clear()  # as in another process
    monkeypatch.setattr(instruction_set, "disagreement", None)
    assert instruction_set.choose(native.LIBRARY) == {widest: "agrees"}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b'{"key', b""])
def test_a_damaged_file_of_findings_is_made_anew(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    instruction_set.choose(native.LIBRARY)
    assert "agrees" in kept(cache).values()


def test_another_library_or_processor_is_checked_anew(cache, monkeypatch, tmp_path):
    instruction_set.choose(native.LIBRARY)
    other = tmp_path / "other.so"
    other.write_bytes(native.LIBRARY.read_bytes() + b"\0")
    instruction_set.choose(other)
    assert len(json.loads(cache.read_text())) == 2
    instruction_set.choose.cache_clear()
    monkeypatch.setattr(instruction_set, "_processor", lambda: "another")
    instruction_set.choose(native.LIBRARY)
    assert len(json.loads(cache.read_text())) == 3


def test_a_home_that_cannot_be_written_is_no_error(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "agrees" in instruction_set.choose(native.LIBRARY).values()


@pytest.mark.parametrize("given", ["", "relative", "~/cache"])
def test_only_an_absolute_cache_folder_counts(monkeypatch, tmp_path, given):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert instruction_set.cache_path() == tmp_path / ".cache" / "dartsfast" / "instruction_sets.json"


def test_a_user_without_a_home_is_no_error(cache, monkeypatch):
    def homeless(user):
        raise KeyError(user)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", homeless)
    assert instruction_set.cache_path() is None
    assert "agrees" in instruction_set.choose(native.LIBRARY).values()
    assert not cache.exists()


def test_one_that_disagrees_is_refused_aloud_and_the_next_serves(cache, monkeypatch):
    monkeypatch.setattr(instruction_set, "names", lambda: ["avx1024", "portable"])
    monkeypatch.setattr(instruction_set, "disagreement", lambda name: "gemm_ differs")
    for _ in range(2):  # found, then read
        instruction_set.choose.cache_clear()
        with pytest.warns(UserWarning, match="avx1024 is not used: gemm_ differs on this processor"):
            found = instruction_set.choose(native.LIBRARY)
        assert found == {"avx1024": "gemm_ differs", "portable": "agrees"} == kept(cache)
        assert torch.ops.dartsfast.cpu_instruction_set() == "portable"
    line = dict(doctor.diagnosis())["instruction sets"]
    assert line.startswith("avx1024 (REFUSED: gemm_ differs), portable (in use)")


def test_the_check_can_be_skipped(cache, monkeypatch):
    monkeypatch.setenv("DARTSFAST_SELFCHECK", "0")
    assert instruction_set.choose(native.LIBRARY) == {} and not cache.exists()


def test_all_sets_of_this_processor_agree(instruction_set_name):
    assert instruction_set.disagreement(instruction_set_name) is None


@pytest.fixture(params=[*instruction_sets.ALL, instruction_sets.EMULATED])
def instruction_set_name(request):
    try:
        if request.param == instruction_sets.EMULATED:  # also where the processor has the instructions
            return instruction_sets.added(request.param)
        return instruction_sets.way(request.param)
    except instruction_sets.UnavailableError as reason:
        pytest.skip(str(reason))


def test_rows_left_out_are_seen(tmp_path):
    """Blocks of 16, 4, 2 and 1 rows, each but the first at most once, leave rows out."""
    csrc, here = tmp_path / "csrc", tmp_path / "tests"
    shutil.copytree(instruction_sets.CSRC, csrc)
    shutil.copytree(instruction_sets.HERE, here)
    header = csrc / "cpu" / "vec.h"
    right = "if constexpr (MOST > 1) each_block<MOST / 2>(count, block, i);"
    wrong = """if constexpr (MOST > 8) {
    if (count - i >= 4) block(i, Int<4>()), i += 4;
    if (count - i >= 2) block(i, Int<2>()), i += 2;
    if (count - i >= 1) block(i, Int<1>());
  } else if constexpr (MOST > 1) each_block<MOST / 2>(count, block, i);"""
    assert header.read_text().count(right) == 1
    header.write_text(header.read_text().replace(right, wrong))
    source = here / "wide.cpp"
    source.write_text(source.read_text().replace("portable-wide", "planted"))
    instruction_sets.add(instruction_sets.build(source, csrc, tmp_path, ("-O0",)))
    assert instruction_set.disagreement("planted") == "branch_conv differs from the portable kernels"


def test_the_first_use_in_a_process_leaves_random_numbers_and_modes_alone(tmp_path):
    program = """
import torch
torch.manual_seed(7)
torch.set_default_dtype(torch.float64)
with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
    from dartsfast.backends import availability
    assert availability("cpu").available
    import dartsfast.ops
    from dartsfast.backends.instruction_set import choose
    from dartsfast.backends.native import LIBRARY
    print(choose(LIBRARY))
print(torch.rand(1, device="cpu").item())
"""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    found, number = out.stdout.splitlines()
    assert "agrees" in found
    torch.manual_seed(7)
    assert float(number) == torch.rand(1, dtype=torch.float64).item()


CROSS = "aarch64-linux-gnu-g++"


@pytest.mark.skipif(shutil.which(CROSS) is None, reason=f"no {CROSS} (Debian's g++-aarch64-linux-gnu)")
@pytest.mark.parametrize(
    "source", sorted(instruction_sets.CSRC.glob("cpu/*.cpp")), ids=lambda path: path.name
)
def test_no_instruction_or_flag_of_x86_is_needed(source):
    """Every file of the extension, as the compiler of an aarch64 machine reads it."""
    include = Path(torch.__file__).parent / "include"
    flags = (
        "-std=c++20",
        "-fvisibility=hidden",
        "-fsyntax-only",
        "-Wall",
        "-Werror",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    )
    headers = (f"-I{instruction_sets.CSRC / 'cpu'}", "-isystem", str(include))
    subprocess.run([CROSS, *flags, *headers, str(source)], check=True, timeout=300)


EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@pytest.mark.skipif(
    shutil.which(CROSS) is None or EMULATOR is None,
    reason=f"no {CROSS} or no qemu-aarch64 (qemu-user-static)",
)
def test_the_portable_kernels_have_the_same_bits_on_aarch64(tmp_path):
    def run(compiler, level, *emulator):
        program = tmp_path / compiler
        source = instruction_sets.HERE / "portable_bits.cpp"
        flags = (
            "-std=c++20",
            "-w",
            "-ffp-contract=off",
            "-static",
            level,
            f"-I{instruction_sets.CSRC / 'cpu'}",
        )
        subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True, timeout=300)
        return subprocess.run(
            [*emulator, str(program)], check=True, timeout=300, capture_output=True, text=True
        ).stdout.splitlines()

    there = run(CROSS, "-O1", EMULATOR)
    assert len(there) == 12 and there == run(compiling.COMPILER, "-O0")
