"""How far two backends are from each other: part by part of a first pass, then iteration by iteration.

Both run the same search from the same weights on the same data, which are seeded random numbers: what is
compared is arithmetic, not learning.
"""

from dartsfast.compare.cnn import CompareConfig, compare_cnn
from dartsfast.compare.measure import Distance, distance
from dartsfast.compare.rnn import CompareRNNConfig, compare_rnn
from dartsfast.compare.show import print_comparison, write_comparison

__all__ = [
    "CompareConfig",
    "CompareRNNConfig",
    "Distance",
    "compare_cnn",
    "compare_rnn",
    "distance",
    "print_comparison",
    "write_comparison",
]
