"""How results are compared: to the bit, or float64 against its largest element."""

import torch
from torch.utils._pytree import tree_leaves


def same_bits(got, wanted):
    """Whether shapes, dtypes, NaN places and all other bits agree, signs of zeros included."""
    got, wanted = tree_leaves(got), tree_leaves(wanted)
    assert len(got) == len(wanted)
    return all(_same_bits(a, b) for a, b in zip(got, wanted, strict=True))


def _same_bits(a, b):
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.isnan(), b.isnan()):
        return False
    if a.dtype == torch.int64:
        return torch.equal(a, b)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    a, b = (torch.where(t.isnan(), torch.zeros_like(t), t).contiguous().view(integer) for t in (a, b))
    return torch.equal(a, b)


def assert_close(got, wanted, tolerance=1e-12, floor=0):
    """Check float64 against the largest element, or ``floor``, of what is wanted, integers exactly."""
    got, wanted = tree_leaves(got), tree_leaves(wanted)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        if b.dtype == torch.int64:
            assert torch.equal(a, b)
            continue
        assert a.shape == b.shape and a.dtype == b.dtype == torch.float64
        if a.numel():
            assert (a - b).abs().max() <= tolerance * max(b.abs().max(), floor)
