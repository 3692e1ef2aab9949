"""Triton kernels, one file an op; installed as ``dartsfast.kernels``.

Importing this package needs Triton. A function of an operator's name fills ``out``, what the contract
(``dartsfast/ops``) allocated after it had checked the arguments, from the operator's own arguments.
"""

from __future__ import annotations

from collections.abc import Callable

from dartsfast.kernels.branch_conv import branch_conv
from dartsfast.kernels.branch_conv_backward import branch_conv_backward

OPERATORS: dict[str, Callable[..., None]] = {
    "branch_conv": branch_conv,
    "branch_conv_backward": branch_conv_backward,
}
"""The function of every operator."""
