"""What is made once for a key, whichever threads ask for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Values by key, none of them None. While one thread makes a value, others that have to make one wait.

    Args:
        most: values, which are all let go where there is to be another one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: dict[Any, V] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Any, make: Callable[[], V]) -> V:
        """Return the value of ``key``, by ``make`` where there is none."""
        found = self._found.get(key)
        if found is not None:
            return found
        with self._lock:
            found = self._found.get(key)
            if found is None:
                found = make()
                if len(self._found) >= self._most:
                    self._found.clear()
                self._found[key] = found
        return found
