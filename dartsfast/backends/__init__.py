"""What computes the operators: which backends there are, whether each can run here, and their kernels.

The operators are defined in :mod:`dartsfast.ops`, which loads what can run here. Nothing in this package
imports it: kernels go by the names of operators, and what they fill is allocated by :mod:`.contracts`.
"""

from dartsfast.backends.table import (
    KERNEL_DTYPES,
    PREFERENCE,
    STORAGE_DTYPES,
    Availability,
    availability,
    candidates,
    check_memory,
    check_storage,
    pretending,
    resolve_backend,
)
from dartsfast.names import BACKENDS, MEMORY_MODES

__all__ = [
    "BACKENDS",
    "KERNEL_DTYPES",
    "MEMORY_MODES",
    "PREFERENCE",
    "STORAGE_DTYPES",
    "Availability",
    "availability",
    "candidates",
    "check_memory",
    "check_storage",
    "pretending",
    "resolve_backend",
]
