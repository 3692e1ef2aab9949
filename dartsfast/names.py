"""The names that options choose among, where they can be read without importing torch."""

BACKENDS = ("reference", "cpu", "cuda", "triton")
MEMORY_MODES = ("store", "recompute")
CNN_MEMORY_MODES = (*MEMORY_MODES, "cell")
SMOOTH_FIRST = 0.03
"""SmoothDARTS' epsilon in the first epoch."""
