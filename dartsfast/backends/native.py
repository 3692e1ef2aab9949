"""Loads the native extension, which registers the CPU kernels of the operators."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from dartsfast.backends.triton import INTERPRETED

# DARTSFAST_LIBRARY names another build of the extension, such as one with sanitizers.
LIBRARY = Path(os.environ.get("DARTSFAST_LIBRARY") or Path(__file__).parents[1] / "_C.abi3.so")

torch.library.define("dartsfast::cpu_instruction_set", "() -> str")
torch.library.define("dartsfast::cpu_instruction_sets", "() -> str")
torch.library.define("dartsfast::empty_cache", "() -> ()")
torch.library.define("dartsfast::empty", "(Tensor like, int[] sizes) -> Tensor")
torch.library.impl("dartsfast::empty", "Autograd", torch.library.fallthrough_kernel)
torch.library.impl("dartsfast::empty", "CompositeExplicitAutograd", lambda like, sizes: like.new_empty(sizes))
torch.library.define("dartsfast::set_cpu_instruction_set", "(str name) -> ()")


@functools.cache
def load() -> str | None:
    """Load the extension once; return None, or why it cannot be used."""
    if INTERPRETED:
        return "TRITON_INTERPRET=1 is set: operators on CPU tensors run in Triton's interpreter"
    if not LIBRARY.exists():
        return (
            "the native extension was not built: install a C++20 compiler (g++ 11 or later), then "
            "`pip install --no-build-isolation --force-reinstall --no-deps` the package again"
        )
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the native extension does not load: {error}"
    return None
