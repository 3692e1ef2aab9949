"""Pictures of results: bars of speed-up and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.op_cases import STOCK, STOCK_LAST
from dartsfast.drawing import new_figure, save_figure

COLORS = ("#1f6fb4", "#c9701a", "#2e8b57")

Bars = Mapping[str, Mapping[str, float]]  # series to label to value


def draw_steps(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw how much faster than the reference every peer is, and its peak memory."""
    rows = [row for row in result["rows"] if "order" in row]
    labels = list(dict.fromkeys(row["peer"] for row in rows))
    panels = []
    for key, title, unit in (
        ("speedup", "iteration: times faster than the reference", "{:.1f}x"),
        ("peak_mb", "peak memory above idle, MB", "{:,.0f}"),
    ):
        bars: dict[str, dict[str, float]] = {}
        for row in rows:
            if key in row:
                bars.setdefault(f"order {row['order']}", {})[row["peer"]] = row[key]
        panels.append((title, unit, bars))
    return _draw(panels, labels, path)


def draw_memory(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw peak against time, a panel a network: what a backend's ways to keep and budgets come to."""
    from matplotlib import ticker

    rows = [row for row in result["rows"] if "peak_mb" in row and "ms_p50" in row]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = new_figure(figsize=(5.2 * max(len(networks), 1), 4), layout="constrained")
    axes = figure.subplots(1, max(len(networks), 1), squeeze=False)[0]
    for ax, network in zip(axes, networks, strict=False):
        mine = [row for row in rows if row["network"] == network]
        for place, backend in enumerate(sorted({row["peer"].split()[0] for row in mine})):
            found = sorted((r for r in mine if r["peer"].split()[0] == backend), key=lambda r: r["peak_mb"])
            peaks, seconds = [r["peak_mb"] for r in found], [r["ms_p50"] / 1e3 for r in found]
            ax.plot(peaks, seconds, "o-", color=COLORS[place % len(COLORS)], label=backend, linewidth=1)
            for r, x, y in zip(found, peaks, seconds, strict=True):
                kept = r["peer"].removeprefix(backend).strip() or "store"
                ax.annotate(kept, (x, y), (2, 5), textcoords="offset points", fontsize=7, rotation=40)
        ax.set(xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter(ticker.NullFormatter())
        ax.margins(0.15)
        ax.set_title(f"{network.upper()}, batch {mine[0]['batch']}, order 2", fontsize=10)
        ax.set_xlabel("peak memory above idle, MB")
        ax.set_ylabel("iteration, s")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def draw_train_step(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw how much faster than stock every peer is."""
    rows = [row for row in result["rows"] if "speedup" in row]
    bars = {"step": {row["peer"]: row["speedup"] for row in rows}}
    return _draw([("step: times faster than stock", "{:.1f}x", bars)], [row["peer"] for row in rows], path)


def draw_descendants(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw how much faster than stock every peer is, by network."""
    rows = [row for row in result["rows"] if "speedup" in row]
    bars: dict[str, dict[str, float]] = {}
    for row in rows:
        bars.setdefault(row["peer"], {})[row["network"]] = row["speedup"]
    labels = list(dict.fromkeys(row["network"] for row in rows))
    return _draw([("a pass: times faster than stock", "{:.1f}x", bars)], labels, path)


def draw_hvp(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw what every product does beside its passes: milliseconds, and share of an iteration."""
    rows = [row for row in result["rows"] if "share" in row]
    labels = list(dict.fromkeys(row["network"] for row in rows))
    panels = []
    for key, scale, title, unit in (
        ("ms_p50", 1, "vector work, ms", "{:.3g}"),
        ("share", 100, "of a second-order iteration, %", "{:.2f} %"),
    ):
        bars: dict[str, dict[str, float]] = {}
        for row in rows:
            bars.setdefault(row["peer"], {})[row["network"]] = scale * row[key]
        panels.append((title, unit, bars))
    return _draw(panels, labels, path)


def draw_model(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw the bytes that an iteration moves and what it keeps for the backward."""
    rows = [row for row in result["rows"] if "peer" in row]
    label = lambda row: f"{row['network']}, {row['peer']}"  # noqa: E731
    labels = list(dict.fromkeys(map(label, rows)))
    panels = []
    for key, title, unit in (
        ("gb", "estimate: GB moved an iteration", "{:.0f}"),
        ("launches", "estimate: launches an iteration", "{:,.0f}"),
        ("kept_gb", "estimate: GB kept for the backward", "{:.2f}"),
    ):
        bars: dict[str, dict[str, float]] = {}
        for row in rows:
            bars.setdefault(f"order {row['order']}", {})[label(row)] = row[key]
        panels.append((title, unit, bars))
    return _draw(panels, labels, path)


def draw_ops(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw how much faster than stock functions every operator is, a panel a stock peer."""
    rows = [row for row in result["rows"] if "speedup" in row]
    labels = list(dict.fromkeys(f"{row['op']} {row['case']}" for row in rows))
    panels = []
    for stock in (STOCK, STOCK_LAST):
        bars: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["peer"] == stock:
                series = "input or weight gradient" if row["pass"].endswith("gradient") else row["pass"]
                bars.setdefault(series, {})[f"{row['op']} {row['case']}"] = row["speedup"]
        panels.append((f"times faster than {stock}", "{:.1f}x", bars))
    return _draw(panels, labels, path)


def _draw(panels: Sequence[tuple[str, str, Bars]], labels: Sequence[str], path: Path) -> list[Path]:
    """Draw horizontal bars, a panel beside the other, ``labels`` from top to bottom."""
    figure = new_figure(figsize=(5.2 * len(panels), 1.2 + 0.42 * max(len(labels), 1)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, unit, bars) in zip(axes, panels, strict=True):
        height = 0.8 / max(len(bars), 1)
        for place, (series, values) in enumerate(bars.items()):
            at = [labels.index(label) + (place - (len(bars) - 1) / 2) * height for label in values]
            drawn = ax.barh(
                at, list(values.values()), height, label=series, color=COLORS[place % len(COLORS)]
            )
            ax.bar_label(drawn, [unit.format(value) for value in values.values()], padding=2, fontsize=7)
        ax.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
        ax.set_title(title, fontsize=10)
        ax.margins(x=0.12)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="x", alpha=0.3)
        ax.set_axisbelow(True)
        if bars:
            ax.legend(frameon=False, fontsize=8)
    axes[0].invert_yaxis()
    return save_figure(figure, path)
