"""Benchmarks of dartsfast, run from a checkout: ``python -m bench``. See ``bench/README.md``."""
