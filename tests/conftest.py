"""Says at the end of a run on which instruction sets kernels ran, and how, and what was left out of it."""

import gc
import os
from collections import Counter
from pathlib import Path

import instruction_sets
import pytest
import torch

from dartsfast.backends import native, table
from dartsfast.backends.triton import INTERPRETED

HERE = Path(__file__).parent
LONG = {
    "cuda_static": "compiles kernels for GPUs, and links their library",
    "emulator": "runs kernels for GPUs on the CPU",
    "triton_kernels": "compiles Triton's kernels",
    "triton_ladder": "compiles Triton's kernels for GPUs",
    "test_bench.py": "runs every suite",
    "test_bench_model.py": "counts the launches and bytes of the paper's searches",
    "test_candidates.py": "competitions of cells",
    "test_candidates_stopped.py": "competitions that are stopped and go on",
    "test_gpu_check.py": "rehearses the check of a GPU",
    "test_interrupt.py": "runs that signals end",
    "test_page_in_a_browser.py": "pages of runs in a browser",
    "test_ranks.py": "runs of several processes",
    "test_resume.py": "searches that are stopped and go on",
    "test_search.py": "whole searches, killed ones too",
    "test_train.py": "trainings of CNNs",
    "test_train_imagenet.py": "trainings of ImageNet's CNNs",
    "test_train_precision.py": "trainings in half precision",
    "test_train_rnn.py": "trainings of RNNs",
    "test_train_rnn_again.py": "trainings of RNNs that are stopped and go on",
}
"""What ``--quick`` leaves out, by file or folder, and what goes unseen without it."""


@pytest.fixture(autouse=True)
def unused_backends_are_warned_of_anew():
    """Let every test see the warnings that a process gives once."""
    table._warn_of_unused.cache_clear()


passed = Counter()  # tests by the name under which an instruction set ran


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        passed.update(value for name, value in report.user_properties if name == instruction_sets.RAN)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what takes long, and say what that is")


def pytest_ignore_collect(collection_path, config):
    """Leave out long files and folders of a quick run; ``None``: what pytest thinks of the others."""
    parts = collection_path.relative_to(HERE).parts if collection_path.is_relative_to(HERE) else ()
    return True if config.getoption("quick") and LONG.keys() & set(parts) else None


def pytest_collection_modifyitems(config, items):
    """Have operators run on one instruction set in a quick run, the processor's best."""
    if not config.getoption("quick") or native.load() is not None:
        return
    own = torch.ops.dartsfast.cpu_instruction_set()
    sets = [getattr(item, "callspec", None) and item.callspec.params.get("instruction_set") for item in items]
    others = [item for item, name in zip(items, sets, strict=True) if name not in (None, own)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item, name in zip(items, sets, strict=True) if name in (None, own)]


def pytest_collection_finish():
    """Spare the garbage collector what lives to the end: to go through torch and all tests takes minutes."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def undrawn(monkeypatch):
    """Draw no pictures of runs in this process: of runs as small as those of tests they are most."""
    from dartsfast.runs.report import Report

    monkeypatch.setattr(Report, "draw", lambda *arguments, **options: None)


def how(name):
    """Return how often ``name`` ran, in words, or None."""
    for way, words in ((name, "natively"), (f"{name}-emulated", "emulated")):
        if passed[way]:
            return f"{name} {'' if '-' in name else words + ' '}({passed[way]} tests)"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    """Let a whole run in CI fail where an instruction set ran in no way."""
    whole = session.config.args_source is session.config.ArgsSource.TESTPATHS
    missing = any(how(name) is None for name in instruction_sets.ALL)
    if exitstatus == 0 and whole and missing and not INTERPRETED and os.environ.get("CI") == "true":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if INTERPRETED or hasattr(terminalreporter.config, "workerinput"):
        return
    ran = {name: how(name) for name in instruction_sets.ALL}
    missing = [name for name, words in ran.items() if words is None]
    terminalreporter.section("instruction sets")
    terminalreporter.line("ran: " + (", ".join(words for words in ran.values() if words) or "none"))
    if missing:
        terminalreporter.line(f"did not run in any way: {', '.join(missing)}", red=True)
    if terminalreporter.config.getoption("quick"):
        terminalreporter.section("left out of a quick run")
        for name, words in LONG.items():
            terminalreporter.line(f"{name}: {words}")
