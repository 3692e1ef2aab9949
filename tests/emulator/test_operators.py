"""The kernels for CUDA, emulated in the extension's place: operators' tests, and whole iterations."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import cuda_launches
from bench.cnn_peers import CNN, Size
from dartsfast.backends import native
from emulator import build, operators

HERE = Path(__file__).parent
TESTS = HERE.parent
FILES = {
    "operators": ("test_ops.py", "test_norm_stats.py", "test_fd_hvp.py", "test_cross_entropy.py"),
    "images in 16 bits": ("test_halves.py",),
    "products and programs": (
        *("test_gemm.py", "test_locked_linear.py", "test_rnn_step.py", "test_programs.py"),
    ),
}
"""Files of tests that run on emulated kernels."""
OF_THE_HOST = (
    "not (bad_arguments or outside_the_vocabulary or any_threads or any_number or many_rows"
    " or without_the_ext or lies_apart or temporaries_of_one_edge)"
)
"""What is left out: labels, which a device cannot refuse, kernels that are not these, where programs have
their tensors, which goes by sizes alone, and threads of the CPU, which kernels for CUDA have nothing of; what
those tests call them with is among the operators' cases."""
ORDERS = ("forward", "reverse", "random")
CHECKED = "float32_agrees"
"""Which tests every access is checked in."""

pytestmark = [
    pytest.mark.skipif(native.load() is not None, reason="there is no extension to compare with"),
    pytest.mark.skipif(
        native.load() is None and torch.ops.dartsfast.cpu_instruction_set() == "cuda-emulated",
        reason="runs by itself",
    ),
]


def ran(library, *command, **environment):
    """Run Python on a library of operators; return what it printed."""
    environment = {"DARTSFAST_LIBRARY": str(library), "DARTSFAST_SELFCHECK": "0", **environment}
    path = os.pathsep.join([str(build.ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        cwd=build.ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-4000:]
    return found.stdout


def passed(output):
    """Return how many tests passed, all of them on emulated kernels."""
    assert "cuda-emulated" in output
    return int(re.search(r"(\d+) passed", output)[1])


def run_tests(library, *chosen, **environment):
    """Run tests by pytest on a library; return how many passed."""
    return passed(ran(library, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, **environment))


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_operators_have_the_oracles_bits(files):
    chosen = [str(TESTS / name) for name in files]
    assert run_tests(operators.library(), *chosen, "-k", OF_THE_HOST) > 150


def test_searches_have_the_originals_figures():
    chosen = "-k", "emulated and store"
    assert run_tests(operators.library(), str(TESTS / "test_golden.py"), *chosen) == 4


@pytest.mark.parametrize("order", ORDERS)
def test_every_access_is_right_in_any_order(order):
    library = operators.library(checked=True)
    assert run_tests(library, str(TESTS / "test_ops.py"), "-k", CHECKED, EMULATOR_ORDER=order) > 30


def test_iterations_have_the_bits_of_the_cpu(tmp_path):
    wanted, found = tmp_path / "cpu.pt", tmp_path / "cuda.pt"
    for library, file in ((native.LIBRARY, wanted), (operators.library(), found)):
        ran(library, str(HERE / "iterations.py"), str(file), "cnn", "rnn")
    cpu, cuda = torch.load(wanted), torch.load(found)
    assert cpu.keys() == cuda.keys() and len(cpu) == 2 * 8 + 3
    for key, tensors in cpu.items():
        pairs = enumerate(zip(tensors, cuda[key], strict=True))
        assert not [i for i, (a, b) in pairs if not torch.equal(a, b)], key


def test_passes_allocate_what_was_planned():
    found = json.loads(ran(operators.library(), str(HERE / "allocated.py")).splitlines()[-1])
    for budget, peak, allocated in found:
        assert allocated <= budget
        assert allocated == pytest.approx(peak, rel=0.01)
    assert len({peak for _, peak, _ in found}) == 6


ITERATIONS = [(1, 3), (2, 1)]
"""Order and layers. Of three layers two reduce, so that all widths are there."""


@pytest.fixture(scope="module", params=ITERATIONS, ids=lambda one: f"order {one[0]}, {one[1]} layers")
def iteration(request):
    """Order and layers of an iteration, what each of its kernels did, and what they did wrong."""
    order, layers = request.param
    printed = ran(operators.library(checked=True), str(HERE / "launches.py"), str(order), str(layers))
    found = json.loads(printed.splitlines()[-1])
    return order, layers, found["kernels"], found["findings"]


def test_programs_are_right_in_every_access(iteration):
    assert iteration[3] == []


def test_launches_are_those_that_are_counted_without_running_them(iteration):
    order, layers, kernels, _ = iteration
    counted = Counter(
        one.name for one in cuda_launches.iteration_launches(Size(batch=1, layers=layers), order)
    )
    beside = ("alpha_softmax", "gemm", "fd_", "elements")  # what programs have none of
    found = {name: one["launches"] for name, one in kernels.items()}
    assert {name: n for name, n in found.items() if not name.startswith(beside)} == counted


CONFLICTS = {
    "resident_kernel": (0.26, "norms' sums, once an image; taps two rows apart, for their gradients"),
    "branch_conv_tile_kernel": (0.12, "weights on their way into shared memory, once a block"),
    "branch_conv_kernel": (0.10, "weights on their way into shared memory, once a block and slice"),
    "pointwise_adjoint_kernel": (0.19, "dz on its way into shared memory, once a slice: two pixels meet"),
    "pool3x3_backward_kernel": (0.20, "gathers of windows, which lie where the image's shape has them"),
}
"""Further passes of an access to shared memory, on average, and why there are any; of other kernels none."""


def test_bank_conflicts_are_few_and_known(iteration):
    for name, found in iteration[2].items():
        most, _ = CONFLICTS.get(name, (0, ""))
        assert found["bank_conflicts"] <= most * found["shared_accesses"], name


def test_the_papers_iteration_has_few_launches_and_bytes():
    whole = cuda_launches.iteration_launches(CNN.size, 1)
    assert len(whole) <= 891  # with nine of the alphas and the classifier 900
    assert sum(one.bytes for one in whole) < 26.6e9
