"""Triton kernels, one file an op, and ``grouped*.py`` for programs; installed as ``dartsfast.kernels``.

Importing this package needs Triton. A function of an operator's name fills ``out``, what the contract
(``dartsfast/ops``) allocated after it had checked the arguments, from the operator's own arguments.
"""

from __future__ import annotations

from collections.abc import Callable

from dartsfast.kernels import (
    alpha_softmax,
    branch_conv,
    branch_conv_backward,
    fd_hvp,
    mixed_sum,
    norm_stats,
    pool3x3,
    rnn_node,
)

OPERATORS: dict[str, Callable[..., None]] = {
    "alpha_softmax": alpha_softmax.alpha_softmax,
    "alpha_softmax_backward": alpha_softmax.alpha_softmax_backward,
    "branch_conv": branch_conv.branch_conv,
    "branch_conv_backward": branch_conv_backward.branch_conv_backward,
    "fd_norm": fd_hvp.fd_norm,
    "fd_perturb_": fd_hvp.fd_perturb_,
    "fd_quotient": fd_hvp.fd_quotient,
    "fd_virtual_step_": fd_hvp.fd_virtual_step_,
    "mixed_sum": mixed_sum.mixed_sum,
    "mixed_sum_backward": mixed_sum.mixed_sum_backward,
    "norm_stats_": norm_stats.norm_stats_,
    "norm_stats_backward": norm_stats.norm_stats_backward,
    "pool3x3": pool3x3.pool3x3,
    "pool3x3_backward": pool3x3.pool3x3_backward,
    "rnn_node": rnn_node.rnn_node,
    "rnn_node_": rnn_node.rnn_node_,
    "rnn_node_backward": rnn_node.rnn_node_backward,
    "rnn_node_backward_": rnn_node.rnn_node_backward_,
}
"""The function of every operator."""
