"""Names of modules from before they moved: the same modules, whichever name is imported first."""

import importlib
import subprocess
import sys

import pytest

from dartsfast.rnn import MOVED

PROGRAM = """
import importlib, sys
old, new = sys.argv[1:]
package, _, name = old.rpartition(".")
first = importlib.import_module(old)
second = importlib.import_module(new)
assert first is second and getattr(importlib.import_module(package), name) is second
assert second.__name__ == second.__spec__.name == new
"""


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_module(old):
    name = f"dartsfast.fused.{MOVED[old]}"
    new = importlib.import_module(name)
    assert importlib.import_module(old) is new
    assert new.__name__ == new.__spec__.name == name


def test_an_old_name_may_come_first():
    for old, new in MOVED.items():
        subprocess.run(
            [sys.executable, "-c", PROGRAM, old, f"dartsfast.fused.{new}"], check=True, timeout=120
        )


def test_other_names_are_still_not_there():
    with pytest.raises(ModuleNotFoundError, match="dartsfast.rnn.lost"):
        importlib.import_module("dartsfast.rnn.lost")
