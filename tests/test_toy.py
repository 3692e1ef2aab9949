"""The paper's Figure 2: looking one step ahead reaches the bilevel solution (1, 1), xi = 0 does not."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from toy import draw, trajectory


def test_one_step_ahead_reaches_the_bilevel_solution():
    torch.testing.assert_close(trajectory(0.5)[-1], torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("xi", [0.0, 0.1, 0.3])
def test_fixed_point_is_two_over_one_plus_two_xi(xi):
    expected = torch.full((2,), 2 / (1 + 2 * xi), dtype=torch.float64)
    torch.testing.assert_close(trajectory(xi)[-1], expected, rtol=0, atol=1e-6)


def test_figure(tmp_path):
    pytest.importorskip("matplotlib")
    draw(tmp_path / "toy.png")
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
