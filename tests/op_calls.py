"""The operators by name: their oracles, and calls that spare the arguments of those that write in place."""

import hashlib

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from dartsfast.oracle import (
    alpha_softmax,
    branch_conv,
    cross_entropy,
    fd_hvp,
    gemm,
    locked_linear,
    mixed_sum,
    norm_stats,
    pool3x3,
    rnn_node,
)

ORACLES = {
    "alpha_softmax": alpha_softmax.alpha_softmax,
    "alpha_softmax_backward": alpha_softmax.alpha_softmax_backward,
    "branch_conv": branch_conv.branch_conv,
    "branch_conv_backward": branch_conv.branch_conv_backward,
    "cross_entropy_": cross_entropy.cross_entropy_,
    "fd_norm": fd_hvp.fd_norm,
    "fd_perturb_": fd_hvp.fd_perturb_,
    "fd_quotient": fd_hvp.fd_quotient,
    "fd_virtual_step_": fd_hvp.fd_virtual_step_,
    "gemm_": gemm.gemm_,
    "locked_linear_": locked_linear.locked_linear_,
    "locked_linear_input_gradient_": locked_linear.locked_linear_input_gradient_,
    "locked_linear_weight_gradient_": locked_linear.locked_linear_weight_gradient_,
    "mixed_sum": mixed_sum.mixed_sum,
    "mixed_sum_backward": mixed_sum.mixed_sum_backward,
    "norm_stats_": norm_stats.norm_stats_,
    "norm_stats_backward": norm_stats.norm_stats_backward,
    "pool3x3": pool3x3.pool3x3,
    "pool3x3_backward": pool3x3.pool3x3_backward,
    "rnn_node": rnn_node.rnn_node,
    "rnn_node_": rnn_node.rnn_node_,
    "rnn_node_backward": rnn_node.rnn_node_backward,
    "rnn_node_backward_": lambda *args: whole(rnn_node.rnn_node_backward_(*args)),
}
Call = tuple[str, tuple]
known = {}  # results of oracles, by ``fingerprint``


def oracle(name, args):
    """Return what the oracle gives, computed once in a process for the same numbers.

    Every instruction set is compared with it, and it takes many times as long as the kernels.
    """
    key = fingerprint(name, args)
    if key not in known:
        known[key] = ORACLES[name](*args)
    return known[key]


def fingerprint(name, args):
    """Return a digest of all that a result depends on: the bits of tensors, not where they lie."""
    values, structure = tree_flatten(args)
    digest = hashlib.blake2b(f"{name} {structure}".encode())
    for value in values:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {value.shape}".encode())
            value = value.detach().resolve_neg()
            same = value.view(torch.int16) if value.dtype == torch.bfloat16 else value  # which numpy lacks
            value = same.numpy().tobytes()
        digest.update(value if isinstance(value, bytes) else repr(value).encode() + b";")
    return digest.digest()


def whole(found):
    """Return what ``rnn_node_backward_`` fills with the sum of the parts of the weights' gradient.

    Which part is added to is the kernels' own affair.
    """
    d_gates, d_states, d_weights = found
    return d_gates, d_states, d_weights.sum(0)


def call(name, args):
    """Return what the operator gives and, for one in place, what becomes of copies of what it writes."""
    args, written = spared(name, args)
    out = getattr(torch.ops.dartsfast, name)(*args)
    if not written:
        return out
    if name == "rnn_node_backward_":
        return whole(written)
    written = [*([] if out is None else [out]), *written]
    return written[0] if len(written) == 1 else tuple(written)


def moved(args, device, dtype=None):
    """Return ``args`` on ``device``, in the same layout; floating-point tensors as ``dtype``, if given.

    ``Tensor.to`` would make dense tensors of slices and of what is expanded.
    """

    def move(t):
        if not isinstance(t, Tensor):
            return t
        wanted = dtype if dtype is not None and t.is_floating_point() else t.dtype
        whole = t.as_strided([t.untyped_storage().nbytes() // t.element_size()], [1], 0)
        return whole.to(device, wanted).as_strided(t.shape, t.stride(), t.storage_offset())

    return tree_map(move, args)


def spared(name, args):
    """Return ``args`` with copies in place of what the operator writes, and those copies."""
    args, written = list(args), []
    for i, argument in enumerate(getattr(torch.ops.dartsfast, name).default._schema.arguments[: len(args)]):
        if argument.alias_info is not None:
            args[i] = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, args[i])
            written.append(args[i])
    return args, written
