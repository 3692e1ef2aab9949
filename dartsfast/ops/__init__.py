"""The fused operators, one module each: contract, shape inference, autograd.

Images are [N, H, W, C]. Every operator on them is differentiable once; a second derivative raises.
Once all are defined, the kernels of the backends that can run here are loaded.
"""

from dartsfast.backends import cuda, instruction_set, native, triton
from dartsfast.ops.alpha_softmax import alpha_softmax
from dartsfast.ops.branch_conv import branch_conv
from dartsfast.ops.cross_entropy import cross_entropy_
from dartsfast.ops.fd_hvp import fd_norm, fd_perturb_, fd_quotient, fd_virtual_step_
from dartsfast.ops.gemm import gemm_
from dartsfast.ops.locked_linear import (
    locked_linear_,
    locked_linear_input_gradient_,
    locked_linear_weight_gradient_,
)
from dartsfast.ops.mixed_sum import mixed_sum
from dartsfast.ops.norm_stats import norm_stats_, norm_stats_backward
from dartsfast.ops.pool3x3 import pool3x3
from dartsfast.ops.rnn_node import rnn_node, rnn_node_, rnn_node_backward_

if native.load() is None:
    instruction_set.choose(native.LIBRARY)
cuda.load()
triton.missing()  # loads them where there is a device for them

__all__ = [
    "alpha_softmax",
    "branch_conv",
    "cross_entropy_",
    "fd_norm",
    "fd_perturb_",
    "fd_quotient",
    "fd_virtual_step_",
    "gemm_",
    "locked_linear_",
    "locked_linear_input_gradient_",
    "locked_linear_weight_gradient_",
    "mixed_sum",
    "norm_stats_",
    "norm_stats_backward",
    "pool3x3",
    "rnn_node",
    "rnn_node_",
    "rnn_node_backward_",
]
