"""Triton kernels, one file an op; installed as ``dartsfast.kernels``.

Importing this package needs Triton. A function of an operator's name fills ``out``, what the contract
(``dartsfast/ops``) allocated after it had checked the arguments, from the operator's own arguments.
"""

from __future__ import annotations

from collections.abc import Callable

from dartsfast.kernels import fd_hvp, rnn_node

OPERATORS: dict[str, Callable[..., None]] = {
    "fd_norm": fd_hvp.fd_norm,
    "fd_perturb_": fd_hvp.fd_perturb_,
    "fd_quotient": fd_hvp.fd_quotient,
    "fd_virtual_step_": fd_hvp.fd_virtual_step_,
    "rnn_node": rnn_node.rnn_node,
    "rnn_node_backward": rnn_node.rnn_node_backward,
}
"""The function of every operator."""
