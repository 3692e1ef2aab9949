"""The second pass of reductions: more partial results than it takes at once, and a last one that is short."""

import pytest
import torch
from comparisons import assert_close
from interpreted import DEVICE, needs_triton, run
from op_calls import ORACLES
from op_cases import Conv

pytest.importorskip("triton")
pytestmark = needs_triton
TILE = 5
COUNTS = [1, 2, 3, 5, 64, 65, 131]


@pytest.fixture(params=[2, 64])
def block(request, monkeypatch):
    from dartsfast.kernels import branch_conv_backward, reduce

    for module in (reduce, branch_conv_backward):
        monkeypatch.setattr(module, "PARTS", request.param)


@pytest.mark.parametrize("parts", COUNTS)
@pytest.mark.parametrize("columns", [1, 37])
def test_moments_are_those_of_all_pixels(parts, columns, block, poisoned):
    from dartsfast.kernels import reduce

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(parts * TILE - 3, 2, columns, dtype=torch.float64, generator=generator)  # [pixels, R, C]
    tiles = x.split(TILE)
    means = torch.stack([t.mean(0) for t in tiles])
    squares = torch.stack([(t - t.mean(0)).square().sum(0) for t in tiles])
    out = torch.empty(2, 2, columns, dtype=torch.float64, device=DEVICE)
    reduce.moments(torch.stack([means, squares], 2).to(DEVICE), len(x), TILE, out)
    assert_close(out.cpu(), torch.stack([x.mean(0), x.var(0, correction=0)], 1))


@pytest.mark.parametrize("parts", COUNTS)
def test_sums_are_those_of_all_parts(parts, block, poisoned):
    from dartsfast.kernels import reduce

    partial = torch.randn(parts, 3, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = torch.empty(3, 13, dtype=torch.float64, device=DEVICE)
    reduce.ordered_sum(partial.to(DEVICE), out, divisor=4)
    assert_close(out.cpu(), partial.sum(0) / 4)


def test_an_operator_adds_up_many_tiles(block, poisoned):
    """Pixels of several tiles and splits, in the forward, the norm's means and the weights' gradients."""
    for name, args in Conv(3, 9, 11, 8, 12, 1, ((3, 1), (1, 1)), True, True).calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))
