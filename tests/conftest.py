"""Says at the end of a run on which instruction sets the kernels ran, and how."""

import gc
import os
from collections import Counter

import instruction_sets
import pytest

from dartsfast.backends.triton import INTERPRETED

passed = Counter()  # tests by the name under which an instruction set ran


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        passed.update(value for name, value in report.user_properties if name == instruction_sets.RAN)


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
