"""What launches the heuristics can choose: found by launching everything at many sizes, compiling nothing."""

import itertools
from unittest import mock

import triton
from aot import TargetDriver
from op_cases import EDGE, Alphas, Conv, Mix, Node, Norms, Pool, Vectors
from triton.runtime import driver
from variants import BATCH, VARIANTS, Variant

CHOSEN = (
    *("BP", "BC", "BO", "BT", "BB", "BH", "BLOCK", "COLUMNS", "LANES", "PARTS", "ROWS", "STEPS"),
    *("maxnreg", "num_stages", "num_warps"),
)
"""Arguments of launches that heuristics choose; the others say what is computed."""
CHANNELS = (1, 2, 3, 5, 8, 12, 16, 17, 24, 31, 32, 33, 36, 48, 63, 64, 65, 70, 96, 128, 144, 256, 576, 1100)
"""Around every power of two, multiples of 4 and not."""
ROWS = (1, 2, 3, 8, 16, 17, 32, 33, 64, 128, 129, 256, 300)


def cases():
    """Return cases at sizes that reach every branch of the heuristics."""
    for Ci, Co in itertools.product(CHANNELS[:-2], repeat=2):
        yield Conv(BATCH, 32, 32, Ci, Co, 1, EDGE[:1], True, True)
        yield Conv(BATCH, 32, 32, Ci, Co, 1, (), True, True)
    for C in CHANNELS:
        yield Pool(BATCH, 32, 32, C, 2)
        yield Mix(BATCH, 32, 32, C, 3, True)
        yield Norms(2, C)
    yield from (Node(2, B, 300) for B in ROWS)
    yield from (Alphas(((14, 8), (n, 8))) for n in (1, 100))
    yield from (Vectors(n) for n in (1, 1_930_624))


def reachable(dtype, target):
    """Return the configurations, (kernel, choices), of launches of ``cases`` in ``dtype`` on ``target``."""
    return _chosen([Variant(case, dtype) for case in cases()], target)


def compiled(target):
    """Return the configurations that the variants compile for ``target``."""
    return _chosen([variant for variant in VARIANTS.values() if target in variant.targets], target)


def _chosen(variants, target):
    found, before = set(), driver._active

    def record(self, *args, grid, warmup, **options):
        choices = tuple((name, options[name]) for name in CHOSEN if name in options)
        found.add((self.fn.__name__, choices))

    driver.set_active(TargetDriver(target))
    try:
        with mock.patch.object(triton.JITFunction, "run", record):
            for variant in variants:
                variant.launch()
    finally:
        driver._active = before
    return found
