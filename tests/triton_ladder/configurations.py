"""What launches the heuristics can choose: found by launching everything at many sizes, compiling nothing."""

import itertools

from aot import LARGE, launched
from op_cases import EDGE, Alphas, Conv, Mix, Node, Norms, Pool, Step, Vectors
from variants import BATCH, Variant

CHANNELS = (1, 2, 3, 5, 8, 12, 16, 17, 24, 31, 32, 33, 36, 48, 63, 64, 65, 70, 96, 128, 144, 256, 576, 1100)
"""Around every power of two, multiples of 4 and not."""
CONVS = (1, 5, 12, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 144)
"""Likewise; each with each."""
ROWS = (2, 3, 8, 16, 17, 32, 33, 64, 128, 129, 256, 300)


def cases():
    """Return cases at sizes that reach every branch of the heuristics."""
    for Ci, Co in itertools.product(CONVS, repeat=2):
        yield Conv(BATCH, 32, 32, Ci, Co, 1, EDGE[:1], True, True)
        yield Conv(BATCH, 32, 32, Ci, Co, 1, (), True, True)
    for C in CHANNELS:
        yield Pool(BATCH, 32, 32, C, 2)
        yield Mix(BATCH, 32, 32, C, 3, True)
        yield Norms(2, C)
    yield from (kind(1, B, -(-LARGE // (4 * B)) * 4) for B in ROWS for kind in (Node, Step))
    yield from (Alphas(((14, 8), (n, 8))) for n in (1, 100))
    yield from (Vectors(n) for n in (1, 1_930_624))


def reachable(dtype, target):
    """Return the configurations of the launches of ``cases`` in ``dtype`` on ``target``."""
    variants = [Variant(case, dtype) for case in cases()]
    return {launch.configuration for variant in variants for launch in launched(variant.launch, target)}
