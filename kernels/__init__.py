"""Triton kernels, one file an op; installed as ``dartsfast.kernels``."""
