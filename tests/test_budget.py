"""Memory budgets: the fastest choice of cells that fits, against all choices, bits and resident memory."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dartsfast.backends import availability, pretending
from dartsfast.cli import main
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
from dartsfast.fused import budget as budget_module
from dartsfast.fused.budget import OPERATIONS_A_BYTE, fit
from dartsfast.fused.passes import planned, total
from dartsfast.methods import new_network
from dartsfast.names import CNN_MEMORY_MODES
from dartsfast.search import CNNConfig
from dartsfast.sizes import in_bytes, in_words, is_size

cpu = availability("cpu")
needs_cpu = pytest.mark.skipif(not cpu.available, reason=cpu.reason)
IMAGES = (16, 3, 32, 32)  # large enough that images are blocks of the cache, on all sides


def network(memory, device="cpu", backend="cpu", **options):
    torch.manual_seed(0)
    options = {"C": 8, "layers": 3, "steps": 2, "multiplier": 2, **options}
    with torch.device(device), pretending(backend):
        return Network(
            num_classes=4, criterion=nn.CrossEntropyLoss(), backend=backend, memory=memory, **options
        )


def come_to(model, modes):
    """Return the peak of a pass with these modes, and its time by operations and bytes of its programs."""
    for cell, mode in zip(model.cells, modes, strict=True):
        cell._memory = mode
    found = planned(model, IMAGES, "both")
    each = [total([run]) for run in found.runs if run.part != "stem"]
    return found.peak, sum(c.operations / OPERATIONS_A_BYTE + c.read + c.written for c in each)


@pytest.fixture(scope="module")
def choices():
    """Peak and time of every choice of modes."""
    model = network("store", "meta")
    return {one: come_to(model, one) for one in itertools.product(CNN_MEMORY_MODES, repeat=3)}


@needs_cpu
def test_the_fastest_choice_that_fits_is_taken(choices):
    peaks = sorted(peak for peak, _ in choices.values())
    prices = []
    for budget in (peaks[0], peaks[4], 2 * peaks[-1]):
        found = network(f"{budget}B").fit_memory(IMAGES)
        assert found.peak == choices[found.modes][0] <= budget
        assert found.least == choices[("cell",) * 3][0]
        # What fits is found from sums, which are a thousandth too small where little lies between.
        best = min(time for peak, time in choices.values() if peak <= budget)
        assert choices[found.modes][1] <= 1.02 * best
        prices.append(found.price)
    assert prices == sorted(prices, reverse=True)
    assert prices[0] > 1.05 and prices[-1] == 1.0


@needs_cpu
def test_every_plan_gives_the_same_bits(choices):
    x, labels = torch.randn(IMAGES), torch.arange(16) % 4

    def bits(model):
        loss = model._loss(x, labels)
        found = torch.autograd.grad(loss, [*model.parameters(), *model.arch_parameters()])
        return [loss, *found, *model.buffers()]

    wanted = bits(network("store"))
    peaks = sorted(peak for peak, _ in choices.values())
    seen = set()
    for budget in (peaks[0], peaks[4], peaks[-1] - 1):
        model = network(f"{budget}B")
        found = bits(model)  # the pass plans by itself
        seen |= (modes := {cell._memory for cell in model.cells})
        assert len(modes) > 1
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert seen == set(CNN_MEMORY_MODES)


@needs_cpu
def test_twenty_budgets_are_kept_and_more_of_it_is_never_slower(monkeypatch):
    known = {}

    def once(network, images, *args):
        key = tuple(cell._memory for cell in network.cells), *images, *args
        return known[key] if key in known else known.setdefault(key, planned(network, images, *args))

    monkeypatch.setattr(budget_module, "planned", once)
    model = network("1GB")
    most = fit(model, IMAGES, 10**9)
    budgets = [most.least + (most.peak - most.least) * k // 19 for k in range(20)]
    found = [fit(model, IMAGES, budget) for budget in budgets]
    assert all(most.least <= one.peak <= budget for one, budget in zip(found, budgets, strict=True))
    prices = [one.price for one in found]
    assert prices == sorted(prices, reverse=True)
    assert prices[0] > prices[-1] == 1.0 and len(set(prices)) >= 8


@needs_cpu
def test_the_second_order_counts_its_copies_of_the_weights():
    model = network("1GB")
    first, second = (model.fit_memory(IMAGES, order) for order in (1, 2))
    weights = 4 * sum(w.numel() for w in model.parameters())
    # Beside the pass after the virtual step the weights to restore, in the difference also its vector.
    assert first.peak + weights <= second.peak <= first.peak + 2 * weights
    assert model.fit_memory(IMAGES) is first
    assert second.serves(IMAGES, 1, 1) and not first.serves(IMAGES, 2, 1) and not first.serves(IMAGES, 1, 2)
    assert model.fit_memory(IMAGES, 1, 2).peak > first.peak  # the gradients of parts before


@needs_cpu
@pytest.mark.parametrize(
    "options", [{"method": "drnas"}, {"method": "gdas"}, {"space": "s4"}, {"method": "p-darts"}], ids=str
)
def test_what_is_drawn_is_planned_without_being_drawn(options):
    drawn = new_network(CNNConfig(memory="1GB", backend="cpu", init_channels=2, layers=3, **options), 4)
    before = torch.get_rng_state()
    found = drawn.fit_memory(IMAGES)
    assert found.peak > 0 and torch.equal(torch.get_rng_state(), before)
    drawn(torch.randn(IMAGES)).sum().backward()


@needs_cpu
def test_a_budget_goes_with_images_in_16_bits():
    full, half = (network("1GB", storage_dtype=kept).fit_memory(IMAGES) for kept in (None, torch.bfloat16))
    assert half.modes == ("store",) * 3 and half.peak < 0.7 * full.peak
    planned, by_hand = (network(memory, storage_dtype=torch.bfloat16) for memory in ("19MB", "store"))
    found = planned.fit_memory(IMAGES)
    assert half.least <= found.peak <= 19e6 < half.peak and len(set(found.modes)) > 1
    for cell, mode in zip(by_hand.cells, found.modes, strict=True):
        cell._memory = mode
    x, labels = torch.randn(IMAGES, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
    each = [
        torch.autograd.grad(model._loss(x, labels), model.arch_parameters())
        for model in (planned, by_hand, network("store"))
    ]
    for mine, theirs, exact in zip(*each, strict=True):
        assert torch.equal(mine, theirs) and not torch.equal(mine, exact)
        assert torch.allclose(mine, exact, atol=0.2 * exact.abs().max())


@needs_cpu
def test_networks_in_float64_take_twice_as_much():
    single, double = (network("1GB").to(dtype).fit_memory(IMAGES) for dtype in (torch.float32, torch.float64))
    # Blocks are rounded up to large pages, by a sixteenth at most.
    assert 2 * single.peak * 16 / 17 < double.peak < 2 * single.peak * 17 / 16


@needs_cpu
def test_what_is_too_little_says_what_would_do():
    least = network("1GB").fit_memory(IMAGES).least
    with pytest.raises(InputError, match=r"of 100\.0 KB is too little.*or smaller images, or fewer channels"):
        network("0.1MB")(torch.randn(IMAGES))
    with pytest.raises(InputError, match=r"batches of \d+ at most") as caught:
        network(f"{int(0.7 * least)}B").fit_memory(IMAGES)
    batch = int(str(caught.value).split("batches of ")[1].split()[0])
    fits = network(f"{int(0.7 * least)}B")
    assert fits.fit_memory((batch, *IMAGES[1:])).peak <= 0.7 * least
    with pytest.raises(InputError, match="too little"):
        fits.fit_memory((batch + 1, *IMAGES[1:]))


@needs_cpu
def test_a_plan_is_made_once_and_goes_with_copies():
    model = network("1GB")
    model(torch.randn(IMAGES))
    model(torch.randn(3, *IMAGES[1:]))  # the last batch of an epoch
    assert len(model._fits) == 1
    again = model.new()
    assert again._fits == model._fits
    assert [cell._memory for cell in again.cells] == [cell._memory for cell in model.cells] == ["store"] * 3
    model(torch.randn(17, *IMAGES[1:]))
    assert len(model._fits) == 2 and len(again._fits) == 1
    with torch.no_grad():
        network("1B")(torch.randn(IMAGES))  # evaluation keeps nothing


@needs_cpu
def test_planning_changes_nothing_of_the_network():
    model = network("1GB")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flags = [t.requires_grad for t in (*model.parameters(), *model.arch_parameters())]
    random = torch.get_rng_state()
    model.fit_memory(IMAGES)
    assert torch.equal(random, torch.get_rng_state())
    assert flags == [t.requires_grad for t in (*model.parameters(), *model.arch_parameters())]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_kernels_for_cuda_are_planned_without_a_gpu():
    found = network("1GB", "meta", "cuda")
    with pretending("cuda"):
        most = found.fit_memory(IMAGES)
        some = network(f"{(most.least + most.peak) // 2}B", "meta", "cuda").fit_memory(IMAGES)
    assert most.least < some.peak < most.peak
    assert some.peak == come_to(network("store", "meta", "cuda"), some.modes)[0]


@needs_cpu
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read memory from")
def test_the_planned_peak_is_the_measured_one():
    images, options = (32, 3, 32, 32), {"C": 16, "layers": 3, "steps": 4, "multiplier": 4}
    script, seen = Path(__file__).with_name("measured_peak.py"), set()
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path)}
    for budget in (78e6, 112e6, 255e6):
        options["memory"] = f"{budget:.0f}B"
        found = network(**options).fit_memory(images)
        seen |= set(found.modes)
        command = [sys.executable, script, json.dumps(["cnn", images, "both", options])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        assert found.peak == pytest.approx(int(done.stdout), rel=0.05)
        assert int(done.stdout) < budget
    assert seen == set(CNN_MEMORY_MODES)


def test_programs_for_triton_allocate_what_was_planned():
    pytest.importorskip("triton")
    script = Path(__file__).with_name("measured_arenas.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    for budget, peak, allocated in found:
        assert peak <= budget
        assert allocated == pytest.approx(peak, rel=0.01)
    assert len({peak for _, peak, _ in found}) == 3


def test_the_reference_path_has_no_programs_to_plan():
    model = network("1GB", backend="reference")
    with pytest.raises(InputError, match="the reference path has none: choose one of store, recompute, cell"):
        model(torch.randn(IMAGES))
    with pytest.raises(InputError, match="memory='store' is no budget"):
        network("store", backend="reference").fit_memory(IMAGES)


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6 * 10**9), ("1.5 gib", 3 << 29), ("800MB", 8 * 10**8), (" 12 kB ", 12000), ("7B", 7)],
)
def test_sizes_are_read(text, size):
    assert is_size(text) and in_bytes(text, torch.device("cpu")) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(7, "7 B"), (1000, "1.0 KB"), (999_900, "999.9 KB"), (10**6, "1.0 MB"), (6 * 10**9, "6,000.0 MB")],
)
def test_sizes_are_said_in_the_unit_that_shows_them(size, text):
    assert in_words(size) == text


@pytest.mark.parametrize(
    "text", ["", "6", "GB", "-1GB", "0MB", "6 TB", "101%", "0%", "nanMB", "1e3MB", "store"]
)
def test_what_is_no_size_is_refused(text):
    assert not is_size(text)
    if text != "store":
        with pytest.raises(InputError, match="or a budget such as 800MB, 6GB or 50%"):
            network(text, backend="reference")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="there is no /proc to read memory from")
def test_a_share_is_of_what_is_free():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    assert in_bytes("50%", torch.device("cpu")) == pytest.approx(free / 2, rel=0.2)


SMALL = [
    "--init_channels",
    "4",
    "--layers",
    "4",
    "--batch_size",
    "8",
    "--image_size",
    "16",
    "--backend",
    "cpu",
]


@needs_cpu
def test_the_command_explains_the_plan(capsys):
    pytest.importorskip("rich")
    assert main(["explain", "cnn", *SMALL, "--memory", "4MB"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("memory 4MB: "))
    assert re.search(r"(store|recompute|cell) cells \d", line)
    peak, least = (float(re.search(rf"{word} ([0-9.]+)", line)[1]) for word in ("peak", "least"))
    assert least <= peak <= 4.0
    assert f" {peak:,.1f} " in next(row for row in reversed(text.splitlines()) if "iteration" in row)
    assert main(["explain", "cnn", *SMALL, "--memory", "0.5MB"]) == 2
    assert "too little" in capsys.readouterr().err
