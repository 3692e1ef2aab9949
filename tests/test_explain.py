"""Programs that are explained: counts by hand, and that they and their memory are those of what runs."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from dartsfast.backends import availability, pretending, triton
from dartsfast.cli import main
from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
from dartsfast.explain import explain_cnn
from dartsfast.fused import program as made
from dartsfast.fused.costs import Cost, costs, words
from dartsfast.fused.encode import Native
from dartsfast.fused.forward import Setting
from dartsfast.fused.passes import iteration
from dartsfast.fused.planning import Part, Plan
from dartsfast.fused.program import Place, Program
from dartsfast.fused.programs import Prepared
from dartsfast.fused.walk import Walk
from dartsfast.search.config import CNNConfig

cpu = availability("cpu")
needs_cpu = pytest.mark.skipif(not cpu.available, reason=cpu.reason)
no_triton = triton.load()
needs_triton = pytest.mark.skipif(no_triton is not None, reason=str(no_triton))


def network(device, **options):
    torch.manual_seed(0)
    options = {"C": 3, "layers": 3, "steps": 2, "multiplier": 2, "backend": "cpu", **options}
    with torch.device(device), pretending(options["backend"]):
        return Network(num_classes=4, criterion=nn.CrossEntropyLoss(), **options)


class Given:
    """A program in the making, of slots that are given unless said otherwise."""

    def __init__(self):
        self.program = Program()

    def __call__(self, *shape, place=Place.GIVEN, dtype=None):
        return self.program.new(shape, place, dtype)

    def cost(self, instruction, dtype=torch.float32):
        self.program.section([instruction])
        *_, (_, _, found) = costs(self.program, dtype)
        return found


X, Z = (
    2 * 4 * 6 * 3,
    2 * 2 * 3 * 5,
)  # elements of an image [2, 4, 6, 3], and of what a stride of 2 makes of it


def convolution(slot, z=None):
    """Return two branches, 3x3 and 5x5, from 3 to 5 channels with a stride of 2."""
    depthwise = [slot(3, 1, 3, 3), slot(3, 1, 5, 5)]
    pointwise = [slot(5, 3, 1, 1), slot(5, 3, 1, 1)]
    return slot(2, 4, 6, 3), slot(2, 3), depthwise, pointwise


DEPTHWISE, POINTWISE = 2 * 12 * 3 * (9 + 25), 2 * 2 * 12 * 3 * 5
WEIGHTS = 3 * (9 + 25) + 2 * 15


@pytest.mark.parametrize(("stored", "size"), [(None, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("read", [False, True])
def test_a_convolution_by_hand(stored, size, read):
    slot = Given()
    x, norm, depthwise, pointwise = convolution(slot)
    z = [slot(2, 2, 3, 5, place=Place.KEPT, dtype=stored) for _ in range(2)]
    stats = slot(2, 2, 5, place=Place.TEMPORARY).rows()
    conv = made.branch_conv(x, norm, depthwise, pointwise, [1, 1], 2, True, z, stats)
    if read:  # else nobody does, and the statistics are not written
        slot.program.section([made.norm_stats([stats[0]], [stats[1]], [(), (), ()], 0.1, 1e-5, 12, [norm])])
        slot.program.sections.insert(0, [conv])
        _, _, found = next(costs(slot.program, torch.float32))
    else:
        found = slot.cost(conv)
    assert found == Cost(
        read=4 * (X + 6 + WEIGHTS),
        written=size * 2 * Z + (4 * 20 if read else 0),
        operations=2 * X + DEPTHWISE + POINTWISE + 4 * 2 * Z,
    )


def test_the_backward_of_a_convolution_by_hand():
    def cost(dx=True, weights=True, normed=True):
        slot = Given()
        x, norm, depthwise, pointwise = convolution(slot)
        g, z = ([slot(2, 2, 3, 5) for _ in range(2)] for _ in range(2))
        coef, base = slot(2, 4, 5).rows(), slot(2, 4, 6, 3)
        new = lambda *refs: [slot(*ref.shape, place=Place.RETURNED) for ref in refs]  # noqa: E731
        means = list(slot(2, 3, place=Place.RETURNED).rows()) if normed and dx else []
        return slot.cost(
            made.branch_conv_backward(
                g, z, coef, x, norm if normed else None, depthwise, pointwise, [1, 1], 2, True,
                base if dx else None, None, new(x)[0] if dx else None,
                new(*depthwise) if weights else [], new(*pointwise) if weights else [], means,
            )
        )  # fmt: skip

    read = 4 * (2 * 2 * Z + 40 + X + 6 + WEIGHTS)
    formed = 4 * 2 * Z  # the gradients of what the norms read
    assert cost() == Cost(
        read + 4 * X,
        4 * (X + WEIGHTS + 6),
        formed + X + (2 + 3) * X + 3 * DEPTHWISE + 2 * POINTWISE,
    )
    assert cost(weights=False) == Cost(
        read + 4 * X, 4 * (X + 6), formed + X + (2 + 3) * X + DEPTHWISE + POINTWISE
    )
    assert cost(dx=False) == Cost(read, 4 * WEIGHTS, formed + 2 * X + 2 * DEPTHWISE + 2 * POINTWISE)
    assert cost(normed=False).read == read + 4 * X - 4 * 6


def test_the_half_of_a_reduction_touches_what_its_stride_does():
    slot = Given()
    x, points, z = slot(2, 4, 6, 3), [slot(5, 3, 1, 1)], [slot(2, 2, 3, 5, place=Place.RETURNED)]
    stats, quarter = slot(1, 2, 5, place=Place.TEMPORARY).rows(), 2 * 2 * 3 * 3
    forward = made.branch_conv(x, None, [], points, [], 2, True, z, stats)
    assert slot.cost(forward)[:2] == (4 * (quarter + 15), 4 * Z)
    dx = slot(2, 4, 6, 3, place=Place.RETURNED)

    def backward(base, onto):
        g, saved, coef = [slot(2, 2, 3, 5)], [slot(2, 2, 3, 5)], slot(1, 4, 5).rows()
        half = made.branch_conv_backward(
            g, saved, coef, x, None, [], points, [], 2, True, base, onto, dx, [], [], []
        )
        return slot.cost(half)[:2]

    others = 2 * Z + 20 + 15
    assert backward(None, dx) == (4 * (others + 2 * quarter), 4 * quarter)
    assert backward(dx, None) == (4 * (others + quarter + X), 4 * X)  # what it leaves out is copied


def test_sums_and_pools_by_hand():
    slot = Given()
    images = [slot(2, 4, 6, 3) for _ in range(2)]
    norms, weights, out = slot(3, 2, 3).rows(), slot(3).rows(), slot(2, 4, 6, 6, place=Place.RETURNED)
    half = out.channels(3, 6)
    # An image that is added twice is read once, of the result half is written.
    summed = made.mixed_sum([*images, images[0]], norms, weights, half, half, [3])
    assert slot.cost(summed) == Cost(4 * (3 * X + 18 + 3), 4 * X, 4 * 3 * X + X)
    g = slot(2, 4, 6, 3)
    means = slot(3, 3, place=Place.RETURNED).rows()
    d_weights = slot(2, place=Place.TEMPORARY).rows()  # which nobody reads
    found = slot.cost(made.mixed_sum_backward(g, images, norms[:2], d_weights, means[0], means[1:], [2]))
    assert found == Cost(4 * (3 * X + 12), 4 * 9, 4 * 2 * X + X)
    z = [slot(2, 2, 3, 3, place=Place.RETURNED) for _ in range(2)]
    pool = made.pool3x3(g, 2, z, slot(2, 2, 3, place=Place.TEMPORARY).rows())
    assert slot.cost(pool) == Cost(4 * X, 4 * 72, (9 + 4) * 72)
    coef, dx = slot(2, 4, 3).rows(), slot(2, 4, 6, 3, place=Place.RETURNED)
    back = made.pool3x3_backward(z[0], z, coef, (0, 1), g, 2, g, dx)
    assert slot.cost(back) == Cost(4 * (X + 72 + 24), 4 * X, (9 + 4) * 72 + X)
    again = made.pool3x3_backward(g, [], coef, (0, 1), images[0], 1, None, dx, slot())  # and of a skip
    assert slot.cost(again) == Cost(4 * (2 * X + 24 + 1), 4 * X, (18 + 4) * 2 * X + 2 * X)
    assert slot.cost(made.add(g, images[0], dx), torch.float64) == Cost(8 * 2 * X, 8 * X, X)
    assert slot.cost(made.copy(g, dx)) == Cost(4 * X, 4 * X, 0)
    assert slot.cost(made.zero(dx)) == Cost(0, 4 * X, 0)


def test_statistics_by_hand():
    slot = Given()
    stats, norm = slot(2, 2, 3).rows(), slot(2, 2, 3, place=Place.KEPT).rows()
    batches = slot(dtype=torch.int64)
    mean, variance = ([s.row(half) for s in stats] for half in range(2))
    moved = [[slot(3), slot(3)], [slot(3), slot(3)], [batches, slot(dtype=torch.int64)]]
    found = slot.cost(made.norm_stats(mean, variance, moved, 0.1, 1e-5, 12, norm))
    assert found == Cost(4 * 12, 4 * 24 + 2 * 8, 4 * 6)
    coef = slot(2, 4, 3, place=Place.RETURNED).rows()
    found = slot.cost(made.norm_stats_backward(mean, variance, norm, slot(2).rows(), [True, True], coef))
    assert found == Cost(4 * (12 + 12 + 2), 4 * 24, 24)


@pytest.mark.parametrize("stored", [None, torch.bfloat16])
@pytest.mark.parametrize("runner", [Native, Walk])
def test_memory_of_a_program_by_hand(runner, stored):
    slot = Given()
    new = lambda C, place, dtype=None: slot(1, 8, 8, C, place=place, dtype=dtype)  # noqa: E731
    x, kept = new(2, Place.GIVEN), new(2, Place.KEPT, stored)
    first, second, third = (new(C, Place.TEMPORARY) for C in (2, 2, 2))
    out = new(2, Place.RETURNED)
    for one in (
        made.add(x, x, first),
        made.add(first, x, second),
        made.copy(second, kept),
        made.add(second, x, third),
        made.add(third, third, out),
    ):
        slot.program.section([one])
    # Two of the three live at a time.
    setting = Setting((x.shape,), (1, 1), torch.float32, torch.device("cpu"), "store", stored, True)
    assert runner(slot.program, setting).memory == (128 * (2 if stored else 4), 2 * 128 * 4)


def test_words_name_slots_and_parts():
    slot = Given()
    x, out = slot(2, 4, 6, 3), slot(2, 4, 6, 6, place=Place.RETURNED)
    norms = slot(2, 2, 3, place=Place.KEPT).rows()
    t = slot(2, place=Place.TEMPORARY)
    parts = ((x, out.channels(3, 6)), (), tuple(norms), (t.row(1),))
    assert words(slot.program, parts) == "g0, r1[2x4x6x3 at 3]; k2[2 of 2x3]; t3[1 at 1]"


class Ran:
    """Counts the programs that run, by their contents.

    They are made as for ``backend``; all but those for the CPU run operator by operator.
    """

    def __init__(self, monkeypatch, backend):
        self.programs = Counter()
        make = Prepared._runner
        if backend != "cpu":
            monkeypatch.setattr(Setting, "runner", backend)
            monkeypatch.setenv("DARTSFAST_SELFCHECK", "0")
            make = lambda prepared, program: Walk(program, prepared.forward.setting)  # noqa: E731

        def spied(prepared, program):
            runner = make(prepared, program)
            run = runner.run

            def counted(*args):
                self.programs[repr(program)] += 1
                return run(*args)

            runner.run = counted
            return runner

        monkeypatch.setattr(Prepared, "_runner", spied)


@needs_cpu
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("backend", ["cpu", "cuda", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": "recompute"},
        {"primitives": ["none", "max_pool_3x3", "sep_conv_3x3"], "multiplier": 1},
        {"primitives": ["skip_connect", "conv_7x1_1x7"], "memory": "recompute"},  # with a module of torch's
    ],
    ids=str,
)
def test_an_iteration_runs_the_programs_that_were_explained(monkeypatch, options, backend, order):
    images = (4, 3, 8, 16)
    passes = iteration(network("meta", **{**options, "backend": backend}), images, order)
    planned = Counter()
    for p in passes:
        for run in p.runs:
            planned[repr(run.program)] += p.times
    ran = Ran(monkeypatch, backend)
    model = network("cpu", **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    args = Namespace(momentum=0.9, weight_decay=0.0, arch_learning_rate=0.1, arch_weight_decay=0.0)
    batch = torch.randn(images), torch.tensor([1, 3, 0, 2])
    Architect(model, args).step(*batch, *batch, 0.1, optimizer, unrolled=order == 2)
    model._loss(*batch).backward()
    assert planned == ran.programs
    parts = [run.part for run in passes[0].runs if run.phase == "forward"]
    assert list(dict.fromkeys(parts)) == ["stem", "cell 0, normal", "cell 1, reduction", "cell 2, reduction"]


@needs_cpu
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read memory from")
@pytest.mark.parametrize("of", ["alphas", "both"])
@pytest.mark.parametrize(("kept", "halved"), [("store", None), ("store", "bfloat16"), ("recompute", None)])
def test_the_planned_peak_is_the_measured_one(kept, halved, of):
    images, options = (32, 3, 32, 32), {"C": 16, "layers": 3, "memory": kept, "steps": 4, "multiplier": 4}
    stored = {"storage_dtype": halved and getattr(torch, halved)}
    planned = next(p for p in iteration(network("meta", **options, **stored), images, 1) if p.of == of)
    script = Path(__file__).with_name("measured_peak.py")
    # Freed memory goes back at once, and what is resident is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path)}
    options = {**options, "halved": halved}
    command = [sys.executable, script, json.dumps(["cnn", images, of, options])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert planned.peak == pytest.approx(int(done.stdout), rel=0.05)


def test_planning_leaves_nothing_behind():
    model = network("meta")
    with pytest.raises(InputError, match="halve"):
        iteration(model, (2, 3, 9, 9), 1)
    assert Part.current() is None
    assert not any(cell._forward_pre_hooks for cell in model.cells)
    first, again = (iteration(model, (2, 3, 8, 8), 1) for _ in range(2))
    assert [p.peak for p in first] == [p.peak for p in again]
    assert not availability("triton", "meta").available
    if cpu.available:
        network("cpu")(torch.randn(2, 3, 8, 8))


def test_memory_is_that_of_what_lives():
    with Plan("walk") as plan:
        x = torch.empty(1000, device="meta")
        y = x.view(10, 100)[2:]
        assert plan.in_use == 4000
        del x
        assert plan.in_use == 4000
        y = y + 1
        assert (plan.in_use, plan.peak) == (3200, 7200)
    del y
    assert (plan.in_use, plan.peak) == (0, 7200)


def test_blocks_of_the_cpus_cache_stay():
    empty = torch.ops.dartsfast.empty
    for runner, peak in (("cpu", 2 * (2 << 20) + 1_000_000), ("cuda", 4_000_000)):  # in whole large pages
        with Plan(runner) as plan:
            like = torch.empty(0, device="meta")
            large = empty(like, [1_000_000])
            del large
            small = torch.empty(250_000, device="meta")
            del small
        assert (plan.in_use, plan.peak) == (0, peak)


SMALL = ["--init_channels", "2", "--layers", "3", "--batch_size", "2", "--image_size", "8"]


def test_the_command_prints_every_cell_and_the_sum(capsys):
    pytest.importorskip("rich")
    assert main(["explain", "cnn", *SMALL, "--backend", "cpu", "--order", "2", "-v", "1"]) == 0
    text = capsys.readouterr().out
    for word in ("cell 1, reduction, backward of weights", "mixed_sum_backward", "stem", "cell 2, reduction"):
        assert word in text
    config = CNNConfig(backend="cpu", init_channels=2, layers=3, batch_size=2, image_size=8, order=2)
    found = [(p.times, run.program) for p in explain_cnn(config) for run in p.runs]
    instructions = sum(times * sum(map(len, program.sections)) for times, program in found)
    row = next(line for line in reversed(text.splitlines()) if "iteration" in line)
    assert f" {instructions:,} " in row


@pytest.mark.parametrize("backend", ["cpu", "cuda", pytest.param("triton", marks=needs_triton)])
def test_half_precision_is_explained_without_a_gpu(backend):
    small = {"backend": backend, "init_channels": 8, "layers": 3, "batch_size": 16, "image_size": 16}
    full, half = (
        max(p.kept for p in explain_cnn(CNNConfig(storage_dtype=storage, **small)))
        for storage in ("float32", "bfloat16")
    )
    assert 0.4 < half / full < 0.6


def test_without_triton_its_launches_cannot_be_counted(monkeypatch, capsys):
    monkeypatch.setattr(triton, "load", lambda: "Triton cannot be imported")
    assert main(["explain", "cnn", *SMALL, "--backend", "triton"]) == 2
    assert "are counted from the kernels: Triton cannot be imported" in capsys.readouterr().err


def test_without_kernels_it_says_what_can_be_explained(monkeypatch, capsys):
    monkeypatch.setattr("dartsfast.explain.resolve_backend", lambda *given: "reference")
    assert main(["explain", "cnn", *SMALL]) == 2
    assert "build the kernels as the warning says, or name with --backend" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "reference"], "'reference' has no programs to explain: choose cpu, cuda or triton"),
        (["--backend", "cpu", "-v", "3"], "there is no cell 3 with programs"),
        (["--backend", "cpu", "-v", "-1"], "there is no cell -1 with programs"),
        (["--backend", "cpu", "--primitives", "nope"], "unknown primitive 'nope'"),
        (["--backend", "cpu", "--image_size", "9"], "cannot halve"),
        (["--batch_size", "0"], "batch_size must be above 0"),
        (["--method", "p-darts"], "the edges of --method p-darts"),
        (["--method", "gdas", "--order", "2"], "--preset paper"),
    ],
)
def test_what_cannot_be_explained_says_why(capsys, words, message):
    assert main(["explain", "cnn", *SMALL, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
