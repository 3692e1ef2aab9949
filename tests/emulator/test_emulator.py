"""The emulator of CUDA C++: right kernels give their results in any order, and planted faults are found."""

import ctypes
import re

import compiling
import pytest
import torch

from emulator import ORDERS, Emulated, build, pointer

PLANTED = build.HERE / "planted"
SOURCES = sorted(PLANTED.glob("*.cu"))
LAUNCHERS = re.findall(r"LAUNCHER\((\w+)", "".join(path.read_text() for path in SOURCES))
FLAGS = ("-Wno-unused-but-set-variable",)
KINDS = {
    "race": ("race", "race: "),
    "bounds": ("bounds", "out of bounds: "),
    "uninitialised": ("uninitialised", "uninitialised: "),
    "barrier": ("synchronisation", "divergent barrier: "),
    "mask": ("synchronisation", "wrong mask: "),
}
GUARD = 64  # elements around a tensor that a wrong kernel may touch


def loaded(checked, *flags, sources=SOURCES, own=()):
    try:
        return Emulated(build.library("planted", sources, checked, (*FLAGS, *flags), own=own))
    except compiling.UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def checked():
    return loaded(True)


@pytest.fixture(scope="module", params=["plain", "checked", "ucontext"])
def library(request, checked):
    if request.param == "checked":
        return checked
    right = [PLANTED / "right.cu"]
    return (
        loaded(False, sources=right)
        if request.param == "plain"
        else loaded(False, "-O0", sources=right, own=("-DEMULATOR_UCONTEXT", "-O0"))
    )


@pytest.fixture(params=ORDERS)
def emulated(request, library):
    library.reset()
    library.order(request.param, seed=5)
    torch.manual_seed(0)
    yield library
    assert library.findings() == []
    library.reset()


def unwritten(*shape, dtype=torch.float32):
    """A tensor that poisons what reads it."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else -1, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_by_shuffles(emulated, dtype):
    x = torch.randint(-9, 9, (7, 256)).to(dtype)
    y = unwritten(7, dtype=dtype)
    emulated.memory(x=x)
    emulated.memory(y=y, initialised=False)
    emulated.call(f"block_sums_{'float' if dtype == torch.float32 else 'double'}", x, y, 7)
    assert torch.equal(y, x.sum(1))


@pytest.mark.parametrize("size", [(19, 21), (8, 16), (1, 1)])
def test_a_tile_with_its_halo(emulated, size):
    x = torch.randint(-9, 9, size).float()
    y = unwritten(*size)
    emulated.memory(x=x)
    emulated.memory(y=y, initialised=False)
    emulated.call("box_blur", x, y, *size)
    assert torch.equal(y, torch.nn.functional.avg_pool2d(x[None], 3, 1, 1, divisor_override=1)[0])


@pytest.mark.parametrize("every_thread", [0, 1])
def test_the_last_block_adds_what_all_left(emulated, every_thread):
    x = torch.randint(-9, 9, (9, 256)).float()
    partial, y, ticket = unwritten(9, 256), unwritten(1), torch.zeros(1, dtype=torch.int32)
    emulated.memory(x=x, ticket=ticket)
    emulated.memory(partial=partial, y=y, initialised=False)
    for _ in range(2):  # the ticket is as it was
        emulated.call("ticket_total", x, partial, ticket, y, 9, every_thread)
        assert y.item() == 2 * x.sum().item() and ticket.item() == 0


def test_what_came_through_two_tickets(emulated):
    x, partial, y = torch.randint(-9, 9, (15,)).float(), unwritten(15), unwritten(1)
    tickets = torch.zeros(4, dtype=torch.int32)
    emulated.memory(x=x, tickets=tickets)
    emulated.memory(partial=partial, y=y, initialised=False)
    emulated.call("ticket_rows", x, partial, tickets, y)
    assert y.item() == x.sum().item()


def test_lanes_through_shared_memory(emulated):
    x, y = torch.randn(128), unwritten(3, 128)
    emulated.memory(x=x)
    emulated.memory(y=y, initialised=False)
    emulated.call("turned_lanes", x, y)
    assert torch.equal(y, x.view(4, 32).flip(1).view(128) + torch.arange(3.0)[:, None])


def test_vectors_atomics_and_parameters(emulated):
    x, want = torch.randn(100, 4), torch.randint(0, 8, (150,), dtype=torch.int32)
    scaled, counts, y = x.clone(), torch.zeros(8, dtype=torch.int32), unwritten(64)
    emulated.memory(scaled=scaled, want=want, counts=counts)
    emulated.memory(y=y, initialised=False)
    emulated.call("scaled", scaled, 1.5, 100)
    emulated.call("counted", want, counts, 150)
    emulated.call("parameters", x, y)
    assert torch.equal(scaled, x * 1.5)
    assert torch.equal(counts, torch.bincount(want, minlength=8).int())
    assert torch.equal(y, 2 * x.view(-1)[:64].flip(0))


def test_operations_of_a_warp(emulated):
    lane = torch.arange(32)
    x, y = torch.randn(32, dtype=torch.float64), unwritten(7, 32, dtype=torch.float64)
    emulated.memory(x=x)
    emulated.memory(y=y, initialised=False)
    emulated.call("warp_values", x, y)
    assert torch.equal(y[0], x[lane // 8 * 8 + (lane + 5) % 8])
    assert torch.equal(y[1], x[torch.where(lane % 16 >= 3, lane - 3, lane)])
    assert torch.equal(y[2], x[torch.where(lane % 16 < 13, lane + 3, lane)])
    assert torch.equal(y[3], x[lane ^ 9])
    assert y[4].unique().tolist() == [11] and y[5].unique().tolist() == [1]
    assert torch.equal(y[6], x[torch.where(lane < 16, lane ^ 1, lane ^ 2)])


def test_orders(library):
    def arrivals(order, seed=0):
        library.reset()
        library.order(order, seed)
        count, y = torch.zeros(1, dtype=torch.int32), unwritten(150, dtype=torch.int32)
        library.call("arrived", count, y)
        return y.tolist()

    assert arrivals("forward") == list(range(150)) == arrivals("reverse")[::-1]
    assert arrivals("random", 1) == arrivals("random", 1) != arrivals("random", 2)
    assert sorted(arrivals("random", 1)) == list(range(150))
    assert arrivals("random", 1)[:50] != sorted(arrivals("random", 1)[:50])


def run_planted(library, launcher, order):
    """Run one planted kernel; return its findings and counters."""
    library.reset()
    library.order(order, seed=3)
    x, y = (torch.zeros(1024 + 2 * GUARD)[GUARD:-GUARD] for _ in range(2))
    size = 98 if launcher == "bounds_wide_read" else 100 if launcher.startswith("bounds_global") else 1024
    library.memory(x=x[:size])
    library.memory(y=y[:size], initialised=not launcher.startswith("uninitialised"))
    library.call(launcher, x, y)
    return library.findings(), library.counters()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name.split("_")[0] in KINDS])
def test_a_planted_fault_is_found_where_it_is(checked, launcher, order):
    kind, words = KINDS[launcher.split("_")[0]]
    found = [finding for finding in run_planted(checked, launcher, order)[0] if finding.kind == kind]
    assert found and all(words in finding.text for finding in found)
    for finding in found:
        file, line = re.findall(r"(\w+\.cu):(\d+)", finding.text)[0]
        assert "// found" in (PLANTED / file).read_text().split("\n")[int(line) - 1], finding
        assert re.search(r"thread \(\d+, 0, 0\) of block \(\d, 0, 0\)", finding.text)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if re.match("right_|traffic_", name)])
def test_a_right_kernel_beside_them_is_not(checked, launcher, order):
    assert run_planted(checked, launcher, order)[0] == []


@pytest.mark.parametrize("missing", range(5))
def test_finishing_without_a_fence_or_a_barrier_is_a_race(missing):
    """Each of those in csrc/cuda/finish.h that order what blocks leave: two fences, three barriers."""
    inlined = "-O2"  # so that places say what called them
    library = loaded(True, f"-DMISSING={missing}", inlined, sources=[PLANTED / "finish.cu"])
    for order in ORDERS:
        races = [found for found in run_planted(library, "right_finish", order)[0] if found.kind == "race"]
        assert races and all("finish.h" in found.text for found in races), order


@pytest.mark.parametrize(
    ("launcher", "text"),
    [
        ("bounds_global_write", "writes 4 bytes, 0 bytes after the end of y (400 bytes)"),
        ("bounds_global_read", "reads 4 bytes, 4 bytes before x (400 bytes)"),
        (
            "bounds_dynamic_write",
            "writes 4 bytes, 0 bytes after the end of dynamic shared memory (256 bytes)",
        ),
        ("bounds_static_pointer", "writes 4 bytes, 0 bytes after the end of shared s (240 bytes)"),
        ("bounds_static_row", "index 8 of an array"),
        ("uninitialised_in_static", "reads offset 0 of shared s (256 bytes)"),
        ("uninitialised_half_of_a_word", "reads offset 2 of y (4096 bytes)"),
        ("race_blocks_add", "reads what another block writes, offset 0 of y (4096 bytes)"),
        ("race_shuffle_as_a_barrier", "writes what thread (0, 0, 0) reads, offset 0 of shared s (4 bytes)"),
        ("barrier_two_barriers", "waits in another at"),
        ("mask_source_not_in_mask", "with mask 0x0000ffff reads from lane 16, which is not in it"),
    ],
)
def test_findings_say_what_and_where(checked, launcher, text):
    assert any(text in finding.text for finding in run_planted(checked, launcher, "forward")[0])


@pytest.mark.parametrize(
    ("launcher", "counts"),
    [  # bytes read, bytes written, sectors read, sectors written, accesses of shared memory, conflicts
        ("traffic_copy", (256, 256, 8, 8, 0, 0)),
        ("traffic_copy_four", (1024, 1024, 32, 32, 0, 0)),
        ("traffic_strided", (128, 128, 32, 4, 0, 0)),
        ("traffic_broadcast", (128, 128, 1, 4, 0, 0)),
        ("traffic_transposed", (4096, 4096, 128, 128, 64, 32 * 31)),
        ("traffic_transposed_padded", (4096, 4096, 128, 128, 64, 0)),
        ("traffic_wide_shared", (512, 512, 16, 16, 2, 0)),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_traffic_is_counted(checked, launcher, counts, order):
    counters = run_planted(checked, launcher, order)[1]
    assert tuple(counters.values()) == (1, *counts, 0)


def test_launches_throw_what_is_wrong_with_them(checked):
    checked.reset()
    thrown = checked.library.thrown
    thrown.restype = ctypes.c_char_p
    y = torch.zeros(64)

    def text(*args):
        return thrown(*args, pointer(y)).decode()

    checked.library.emulator_collect(0)
    assert text(1, 32, 0) == ""
    assert "divergent barrier" in text(1, 64, 0)
    assert text(1, 32, 0) == ""  # what was found is over
    assert text(1, 1025, 0).startswith("invalid configuration argument: block (1025, 1, 1)")
    assert text(0, 32, 0).startswith("invalid configuration argument: grid (0, 1, 1)")
    assert text(1, 32, (163 << 10) + 1).startswith("invalid argument: 166913 bytes of shared memory")
    checked.reset()
