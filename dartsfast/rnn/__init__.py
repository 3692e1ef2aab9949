"""Recurrent cells: the module names of the original code's ``rnn`` folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {f"{__name__}.fused": "rnn", f"{__name__}.loss": "loss"}
"""Modules that were here once, and what they are in ``dartsfast.fused``."""


class _Moved(MetaPathFinder, Loader):
    """Asked before all others: an installation over an older one may have left the files of then."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        # The import takes what is in its place by then.
        sys.modules[module.__name__] = import_module(f"dartsfast.fused.{MOVED[module.__name__]}")


sys.meta_path.insert(0, _Moved())
