"""A comparison as tables, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dartsfast.drawing import new_figure, save_figure
from dartsfast.tables import print_table


def write_comparison(result: dict[str, Any], out: str | Path) -> list[Path]:
    """Write ``compare.json``, ``compare.png`` and ``compare.svg`` to the folder ``out``; return the paths."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "compare.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return [file, *_draw(result, folder / "compare")]


def _draw(result: dict[str, Any], path: Path) -> list[Path]:
    conditions = result["conditions"]
    figure = new_figure(figsize=(5.6, 3.6), layout="constrained")
    ax = figure.subplots()
    for quantity, color in (("alphas", "#c9701a"), ("weights", "#1f6fb4")):
        rows = [row for row in result["iterations"] if row["quantity"] == quantity]
        points = [(row["iteration"], row["relative_error"]) for row in rows if row["relative_error"]]
        label = quantity if points else f"{quantity}: no difference"
        ax.plot(
            *zip(*points or [(1, math.nan)], strict=True), label=label, color=color, marker="o", markersize=3
        )
    ax.set_yscale("log")
    ax.set(xlabel="iteration", ylabel="relative error")
    ax.set_title(
        f"{conditions['backends'][1]} against {conditions['backends'][0]}, {conditions['dtype']}, "
        f"order {conditions['order']}",
        parse_math=False,
        fontsize=10,
    )
    ax.set_xlim(0.5, conditions["iterations"] + 0.5)
    ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return save_figure(figure, path)


def print_comparison(result: dict[str, Any]) -> None:
    """Print the tables and what follows from them; as rich tables where rich is installed."""
    conditions = result["conditions"]
    first, second = conditions["backends"]
    print(
        f"{second} against {first}: {conditions['dtype']}, order {conditions['order']}, "
        f"{conditions['size']}, batch {conditions['batch_size']}, "
        f"seed {conditions['seed']}, threads: {conditions['threads']}\ndata: {conditions['data']}"
    )
    columns = ["equal bits", "largest ULP", "relative error"]
    print_table(
        "First pass, every part on the same inputs",
        ["part", *columns],
        [[row["name"], *_cells(row)] for row in result["parts"]],
        len(columns),
    )
    print_table(
        "After every iteration",
        ["iteration", "what", *columns],
        [[str(row["iteration"]), _what(row), *_cells(row)] for row in result["iterations"]],
        len(columns),
    )
    found = result["first_divergence"]
    print(f"first part that differs       {found['part'] or 'none'}")
    print(f"first iteration that differs  {found['iteration'] or 'none'}")
    print(f"genotypes                     {'agree' if result['genotypes']['agree'] else 'DIFFER'}")


def _what(row: dict[str, Any]) -> str:
    return f"{row['quantity']} {row['values'][1]:.5f}" if "values" in row else row["quantity"]


def _cells(row: dict[str, Any]) -> list[str]:
    # 99.996 % must not read as 100 %.
    share = math.floor(row["equal"] * 1e4) / 100
    ulp = f"{row['ulp']:,}" if row["ulp"] < 1e9 else f"{row['ulp']:.2e}"
    return [f"{share:.2f} %", ulp, f"{row['relative_error']:.2e}"]
