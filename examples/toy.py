"""The paper's Figure 2: one weight, one alpha, and what looking one step ahead changes.

L_val(w, alpha) = alpha * w - 2 * alpha + 1 and L_train(w, alpha) = w^2 - 2 * alpha * w + alpha^2,
from (alpha, w) = (2, -2). The minimiser of L_train is w = alpha, so the bilevel solution is (1, 1).
Both variables take plain gradient steps in turn: alpha on the validation loss at
w - xi * dL_train/dw, then w on the training loss. The fixed point is alpha = w = 2 / (1 + 2 xi):
xi = 0 stays at (2, 2), any xi > 0 comes nearer, and xi = 1/2, the inner problem's Newton step,
reaches (1, 1).

Run ``python examples/toy.py`` for the figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dartsfast.bilevel import VirtualStep, alpha_gradient


def trajectory(xi: float, *, steps: int = 500, lr: float = 0.05) -> Tensor:
    """Return the points (alpha, w), float64 [steps + 1, 2], of a search with inner step ``xi``."""
    alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    w = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

    def train_loss() -> Tensor:
        return w**2 - 2 * alpha * w + alpha**2

    def valid_loss() -> Tensor:
        return alpha * w - 2 * alpha + 1

    virtual = VirtualStep(lr=xi) if xi else None
    points = [(alpha.item(), w.item())]
    for _ in range(steps):
        (gradient,) = alpha_gradient([w], [alpha], train_loss, valid_loss, virtual)
        with torch.no_grad():
            alpha -= lr * gradient  # type: ignore[operator]
        (w_gradient,) = torch.autograd.grad(train_loss(), [w])
        with torch.no_grad():
            w -= lr * w_gradient
        points.append((alpha.item(), w.item()))
    return torch.tensor(points, dtype=torch.float64)


def draw(path: Path, xis: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)) -> None:
    """Draw the trajectories over the validation loss to ``path`` (PNG or SVG)."""
    from matplotlib.figure import Figure

    grid = torch.linspace(-2.5, 4.0, 131)
    alpha, w = torch.meshgrid(grid, grid, indexing="xy")
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.contour(alpha, w, alpha * w - 2 * alpha + 1, levels=20, cmap="Greys", linewidths=0.6)
    axes.plot(grid, grid, ":", color="tab:red", label="w = argmin L_train")
    for xi in xis:
        points = trajectory(xi)
        axes.plot(*points.T, ".-", markersize=2, linewidth=1, label=f"xi = {xi:g}")
    axes.plot(1, 1, "*", color="black", markersize=12, label="bilevel solution (1, 1)")
    axes.set(xlabel="alpha", ylabel="w", xlim=(-2.5, 4.0), ylim=(-2.5, 4.0))
    axes.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Print where each trajectory ends and draw the figure."""
    parser = argparse.ArgumentParser(description="The toy bilevel problem of the DARTS paper, Figure 2.")
    parser.add_argument("--out", type=Path, default=Path("toy.png"), help="the figure (default: %(default)s)")
    out = parser.parse_args().out
    for xi in (0.0, 0.1, 0.3, 0.5):
        alpha, w = trajectory(xi)[-1].tolist()
        print(f"xi = {xi:3.1f}: alpha = {alpha:8.4f}, w = {w:8.4f}")
    draw(out)
    print(f"figure: {out}")


if __name__ == "__main__":
    main()
