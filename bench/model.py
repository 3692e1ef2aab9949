"""Suite ``model``: an ESTIMATE of what an iteration costs on GPUs, from counts; nothing is run or timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.costs import Launch
from bench.counting import META, counting, kept_bytes, prepare, pretending
from bench.options import Options
from bench.peers import REFERENCE, Workload
from bench.workloads import WORKLOADS

PEERS = (REFERENCE, "triton store", "triton store bf16", "triton recompute")
QUICK_PEERS = (REFERENCE, "triton store")
DETAILED = "triton store", 2  # has every kernel
STOCK = "stock operators"
GRAPH_SECONDS = 2e-6  # between launches in a graph
ROUND_SECONDS = 0.4e-6  # a trip to memory, and a sum over a block's threads after it
STOCK_SECONDS = 6e-6  # of the host, a stock operator
# Of the host, a Triton kernel: what its operator does in Python, and what Triton's launcher does for every
# argument. Fitted to operators' own times on a server's core: norm_stats_ 84 us, mixed_sum 155, the backward
# of branch_conv 180 to 580.
KERNEL_SECONDS, ARGUMENT_SECONDS = 65e-6, 1.5e-6


@dataclass(frozen=True)
class Card:
    """A GPU by its vendor's figures: bytes and float32 operations a second."""

    bandwidth: float
    rate: float


CARDS = {
    "A100 80GB SXM": Card(2039e9, 19.5e12),
    "H100 SXM": Card(3350e9, 67e12),
    "RTX 3060": Card(360e9, 12.7e12),
}


def device_seconds(launches: Sequence[Launch], card: Card) -> float:
    """Return what ``launches`` take one after the other, as within a CUDA graph."""
    return sum(launch_seconds(one, card) for one in launches)


def launch_seconds(one: Launch, card: Card) -> float:
    """Return what a launch takes in a graph: the longest of its bytes, operations and rounds, and the gap."""
    work = max(one.bytes / card.bandwidth, one.operations / card.rate, one.rounds * ROUND_SECONDS)
    return work + GRAPH_SECONDS


def eager_seconds(launches: Sequence[Launch], card: Card) -> float:
    """Return the same launched one by one: the host works ahead of the device, the slower of them counts."""
    return max(device_seconds(launches, card), sum(map(host_seconds, launches)))


def host_seconds(one: Launch) -> float:
    """Return what the host takes for a launch."""
    return KERNEL_SECONDS + ARGUMENT_SECONDS * one.arguments if one.triton else STOCK_SECONDS


def run(options: Options) -> dict[str, Any]:
    """Count the iterations of every peer; return conditions and rows, one an iteration or a kernel.

    Raises:
        InputError: Triton cannot be imported.
    """
    iterations, kernels, sizes = [], [], {}
    for name, workload in WORKLOADS.items():
        size = workload.quick if options.quick else workload.size
        size = dataclasses.replace(size, batch=options.batch or size.batch)
        sizes[name] = dataclasses.asdict(size)
        for order in (1, 2):
            for peer in QUICK_PEERS if options.quick else PEERS:
                if peer not in workload.peers:
                    continue
                print(f"model: {name}, {peer}, order {order}", flush=True)
                launches, kept = count(workload, peer, order, size)
                row = {
                    "network": name,
                    "peer": peer,
                    "order": order,
                    **_sums(launches),
                    "kept_gb": kept / 1e9,
                }
                for card_name, card in CARDS.items():
                    row[f"eager_ms {card_name}"] = 1e3 * eager_seconds(launches, card)
                iterations.append(row)
                if (peer, order) == DETAILED:
                    kernels += by_kernel(name, launches)
    assumed = {
        "graph_us": GRAPH_SECONDS,
        "round_us": ROUND_SECONDS,
        "stock_us": STOCK_SECONDS,
        "kernel_us": KERNEL_SECONDS,
        "argument_us": ARGUMENT_SECONDS,
    }
    conditions = {name: 1e6 * seconds for name, seconds in assumed.items()}
    cards = {name: dataclasses.asdict(card) for name, card in CARDS.items()}
    return {"conditions": {**sizes, **conditions, "cards": cards}, "rows": iterations + kernels}


def count(workload: Workload, peer: str, order: int, size: Any) -> tuple[list[Launch], int]:
    """Return the launches of an iteration, and the bytes that a forward keeps for its backward."""
    with pretending():
        with META:
            iteration = workload.iteration(workload.peers[peer], size, device=META)
        prepare(iteration)
        with counting() as launches:
            iteration.run(order)
        kept = kept_bytes(iteration.train_loss, list(iteration.model.parameters()))
    return launches, kept


def by_kernel(network: str, launches: Sequence[Launch]) -> list[dict[str, Any]]:
    """Return a row a Triton kernel, those that move most first, and one of all stock operators."""
    groups: dict[str, list[Launch]] = {}
    for one in launches:
        groups.setdefault(one.name if one.triton else STOCK, []).append(one)
    rows = [{"network": network, "kernel": name, **_sums(group)} for name, group in groups.items()]
    return sorted(rows, key=lambda row: (row["kernel"] == STOCK, -row["gb"]))


def _sums(launches: Sequence[Launch]) -> dict[str, Any]:
    sums: dict[str, Any] = {
        "launches": len(launches),
        "triton_launches": sum(one.triton for one in launches),
        "gb": sum(one.bytes for one in launches) / 1e9,
        "gflop": sum(one.operations for one in launches) / 1e9,
    }
    for name, card in CARDS.items():
        sums[f"graph_ms {name}"] = 1e3 * device_seconds(launches, card)
    return sums


def table(result: dict[str, Any]) -> str:
    """Return two markdown tables: iterations, and the kernels of one."""
    cards = list(result["conditions"]["cards"])
    titles = [
        "network",
        "order",
        "peer",
        "launches (Triton)",
        "GB moved",
        "GFLOP",
        "GB kept for the backward",
    ]
    lines = [_line([*titles, *(f"{card}, ms in a graph (eager)" for card in cards)])]
    lines.append("|---" * (len(titles) + len(cards)) + "|")
    for row in (row for row in result["rows"] if "peer" in row):
        cells = [
            row["network"],
            str(row["order"]),
            row["peer"],
            f"{row['launches']:,} ({row['triton_launches']:,})",
        ]
        cells += [f"{row['gb']:.1f}", f"{row['gflop']:,.0f}", f"{row['kept_gb']:.2f}"]
        cells += [f"{row[f'graph_ms {card}']:,.0f} ({row[f'eager_ms {card}']:,.0f})" for card in cards]
        lines.append(_line(cells))
    peer, order = DETAILED
    titles = ["network", f"kernels of `{peer}`, order {order}", "launches", "GB moved", "GFLOP"]
    lines += ["", _line([*titles, *(f"{card}, ms in a graph" for card in cards)])]
    lines.append("|---" * (len(titles) + len(cards)) + "|")
    for row in (row for row in result["rows"] if "kernel" in row):
        cells = [
            row["network"],
            row["kernel"],
            f"{row['launches']:,}",
            f"{row['gb']:.3g}",
            f"{row['gflop']:.3g}",
        ]
        lines.append(_line([*cells, *(f"{row[f'graph_ms {card}']:.3g}" for card in cards)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was counted, and that nothing was timed."""
    given: Mapping[str, Any] = result["conditions"]
    cnn, rnn = given["cnn"], given["rnn"]
    cards = ", ".join(
        f"{name} {card['bandwidth'] / 1e9:,.0f} GB/s and {card['rate'] / 1e12:.1f} TFLOP/s"
        for name, card in given["cards"].items()
    )
    return (
        f"an ESTIMATE from counts, nothing ran on a GPU. Network(C={cnn['C']}, {cnn['classes']} classes, "
        f"{cnn['layers']} layers), {cnn['image']}x{cnn['image']} images, batch {cnn['batch']}, and "
        f"RNNModelSearch(nhid {rnn['nhid']}, vocabulary {rnn['vocabulary']:,}), BPTT {rnn['bptt']}, "
        f"batch {rnn['batch']}, float32 arithmetic: an alpha and a weight step. A launch takes the longest "
        f"of its bytes and its float32 operations at the vendor's figures ({cards}) and of "
        f"{given['round_us']:g} us a round of a program that goes through memory in a loop, and "
        f"{given['graph_us']:g} us more; eager: that, or the host's time, whichever adds up to more: "
        f"{given['stock_us']:g} us a stock operator, {given['kernel_us']:g} us and "
        f"{given['argument_us']:g} us an argument a Triton kernel"
    )
