"""How near to the ordered oracles kernels that add up in another order must come; needs no test runner.

There a result may be 4 times as far from float64 as the oracle is, and 8 roundings of the largest element.
"""

import torch
from op_calls import oracle
from torch.utils._pytree import tree_map

from dartsfast.oracle.arithmetic import moments

ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Of storage: half a unit in the last place of a number just above a power of two."""


def assert_near(got, wanted, truth, name):
    """Check a result against float64, as ``wanted``, the oracle's in the same arithmetic, allows.

    What is stored in half precision may be a rounding of that away besides.
    """
    stored = ROUNDOFF.get(got.dtype, 0.0)
    assert got.shape == wanted.shape and (stored or got.dtype == wanted.dtype), name
    if truth.nan_to_num(0, 0, 0).abs().gt(1e30).any():
        return  # about the largest float32: one order overflows where another does not
    finite = wanted.isfinite()
    assert torch.equal(got.isfinite(), finite), name
    error, own = ((t - truth)[finite].abs() for t in (got, wanted))
    if error.numel():
        exact = truth[finite].abs()
        bound = 4 * own.max() + 8 * 2.0**-24 * exact.max() + stored * exact
        assert (error <= bound).all(), (
            f"{name} is off by {error.max():.2g}, where at most {bound.max():.2g} is rounding"
        )


def wide(args, dtype=torch.float64):
    """Return ``args`` with floating-point tensors in float64, or as ``dtype``."""
    return tree_map(
        lambda t: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t, args
    )


def rounded(name, args):
    """Return what an operator leaves: the oracle's, as contracts say that it is stored."""
    x = args[0]
    stored = args[7] if name == "branch_conv" and len(args) > 7 else None
    wanted = oracle(name, wide(args[:7] if stored else args, torch.float32))
    if name in ("branch_conv", "pool3x3"):
        z = wanted[0].to(stored or x.dtype)
        return z, torch.stack([moments(image.float()) for image in z])
    if name == "mixed_sum":
        return wanted.to(args[1].dtype)
    if name == "pool3x3_backward":
        return wanted.to(x[0].dtype)
    if name == "mixed_sum_backward":
        return wanted
    dx, *gradients, means = wanted
    gradients = [
        [t.to(w.dtype) for t, w in zip(*pair, strict=False)]
        for pair in zip(gradients, args[5:7], strict=True)
    ]
    return dx.to(x[0].dtype), *gradients, means
