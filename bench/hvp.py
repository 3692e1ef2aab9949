"""Suite ``hvp``: what a finite-difference Hessian-vector product costs beyond its two passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device import Device, open_device
from bench.gate import disagreement
from bench.options import Options
from bench.peers import REFERENCE, Iteration, Peer, Workload, flat
from bench.timing import interleaved, spread
from bench.workloads import WORKLOADS
from dartsfast.bilevel import hvp
from dartsfast.bilevel.guard import gradient

OURS, PLAIN = "dartsfast", "per tensor"
R = 0.01
# Of the largest element. A difference of gradients loses the digits that they share.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-2}

Product = Callable[[Callable[[], Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Any]


def per_tensor(
    loss_fn: Callable[[], Tensor], params: Sequence[Tensor], vector: Sequence[Tensor], wrt: Sequence[Tensor]
) -> list[Tensor]:
    """Return the product as a script would write it: a few small operations a parameter."""
    saved = [p.detach().clone() for p in params]
    step = R / torch.cat([v.flatten() for v in vector]).norm()
    gradients = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, origin, v in zip(params, saved, vector, strict=True):
                p.copy_(origin).add_(sign * step * v)
        gradients.append(gradient(loss_fn, wrt, without=params))
    with torch.no_grad():
        for p, origin in zip(params, saved, strict=True):
            p.copy_(origin)
    return [(plus - minus) / (2 * step) for plus, minus in zip(*gradients, strict=True)]


PRODUCTS: dict[str, Product] = {OURS: partial(hvp, r=R), PLAIN: per_tensor}


def run(options: Options) -> dict[str, Any]:
    """Gate and measure both products on both searches; return conditions and rows."""
    device = open_device(options.device)
    repeats = options.repeats or (1 if options.quick else 5)
    rows: list[dict[str, Any]] = []
    sizes = {}
    for network, workload in WORKLOADS.items():
        size = workload.quick if options.quick else workload.size
        size = dataclasses.replace(size, batch=options.batch or size.batch)
        sizes[network] = dataclasses.asdict(size)
        refused = {name: reason for name in PRODUCTS if (reason := refusal(workload, name, device))}
        for name, reason in refused.items():
            print(f"hvp: {network}, {name} refused: {reason}", flush=True)
            rows.append({"network": network, "peer": name, "refused": reason})
        print(f"hvp: {network}", flush=True)
        rows += _measured(workload, size, repeats, [n for n in PRODUCTS if n not in refused], device)
    return {"conditions": {**sizes, "repeats": repeats, "dtype": "float32", "r": R}, "rows": rows}


def refusal(workload: Workload, name: str, device: Device) -> str | None:
    """Return why product ``name`` must not be timed, or None: the plain one of the reference in float64."""
    (truth,) = _gate_product(workload, PLAIN, REFERENCE, torch.float64, device)
    for dtype, tolerance in TOLERANCES.items():
        found = _gate_product(workload, name, "auto", dtype, device)
        wrong = disagreement(found, [truth], tolerance)
        if wrong:
            return f"product in {str(dtype).removeprefix('torch.')}: {wrong}"
    return None


def _gate_product(
    workload: Workload, name: str, backend: str, dtype: torch.dtype, device: Device
) -> list[Tensor]:
    iteration = workload.iteration(Peer(backend), workload.gate, dtype, device.place)
    weights, alphas = list(iteration.model.parameters()), iteration.model.arch_parameters()
    # The same vector for all, not its own rounding of it.
    vector = [torch.sin(torch.arange(w.numel())).view_as(w.cpu()).to(w) for w in weights]
    return [flat(PRODUCTS[name](iteration.train_loss, weights, vector, alphas))]


def _measured(
    workload: Workload, size: Any, repeats: int, names: Sequence[str], device: Device
) -> list[dict[str, Any]]:
    """Time the products and whole second-order iterations in turns; return a row a product."""
    iteration = workload.iteration(Peer("auto"), size, device=device.place)
    weights, alphas = list(iteration.model.parameters()), iteration.model.arch_parameters()
    found = gradient(iteration.train_loss, weights, without=alphas)
    vector = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}

    def sample(name: str) -> None:
        samples[name].append(split(PRODUCTS[name], iteration, weights, vector, alphas, device))

    calls = {"iteration": partial(iteration.run, 2), **{name: partial(sample, name) for name in names}}
    whole = interleaved(calls, repeats, device)["iteration"]["ms_p50"]
    rows = []
    for name, seconds in samples.items():
        passes, rest = zip(*seconds[1:], strict=True)  # the first warms up
        row = {"network": workload.network, "peer": name, "backend": iteration.model.backend}
        row |= spread([1e3 * s for s in rest])
        row |= {"passes_ms": spread([1e3 * s for s in passes])["ms_p50"], "iteration_ms": whole}
        rows.append({**row, "share": row["ms_p50"] / whole})
    plain = {row["peer"]: row["ms_p50"] for row in rows}.get(PLAIN)
    return [row if plain is None else {**row, "speedup": plain / row["ms_p50"]} for row in rows]


def split(
    product: Product,
    iteration: Iteration,
    weights: Sequence[Tensor],
    vector: Sequence[Tensor],
    alphas: Sequence[Tensor],
    device: Device,
) -> tuple[float, float]:
    """Run ``product``; return the seconds of its passes, and of all else.

    A pass goes from the call of the loss to the last of the alphas' gradients: what else a product does
    is timed where it happens, with the caches as the passes leave them.
    """
    spans: list[list[float]] = []

    def loss() -> Tensor:
        spans.append([device.now()])
        return iteration.train_loss()

    def arrived(grad: Tensor) -> None:
        spans[-1].append(device.now())

    hooks = [alpha.register_hook(arrived) for alpha in alphas]
    began = device.now()
    product(loss, weights, vector, alphas)
    whole = device.now() - began
    for hook in hooks:
        hook.remove()
    passes = sum(span[-1] - span[0] for span in spans)
    return passes, whole - passes


def table(result: dict[str, Any]) -> str:
    """Return the rows as a markdown table."""
    lines = [
        "| network | peer | vector work, ms (p20-p80) | times faster | two passes, ms "
        "| second-order iteration, ms | share of it |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "refused" in row:
            lines.append(f"| {row['network']} | {row['peer']} | not timed: {row['refused']} |" + " |" * 4)
            continue
        cells = [f"{row['network']}, {row['backend']}", row["peer"]]
        cells.append(f"{row['ms_p50']:.3g} ({row['ms_p20']:.3g}-{row['ms_p80']:.3g})")
        cells.append(f"{row['speedup']:.1f}" if "speedup" in row else "")
        cells += [f"{row['passes_ms']:,.0f}", f"{row['iteration_ms']:,.0f}", f"{100 * row['share']:.2f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conditions(result: dict[str, Any]) -> str:
    """Say in a sentence what was measured."""
    given = result["conditions"]
    cnn, rnn = given["cnn"], given["rnn"]
    return (
        f"finite difference, float32, on Network(C={cnn['C']}, {cnn['classes']} classes, {cnn['layers']} "
        f"layers), batch {cnn['batch']}, and RNNModelSearch(nhid {rnn['nhid']}, vocabulary "
        f"{rnn['vocabulary']:,}), BPTT {rnn['bptt']}, batch {rnn['batch']}; vector work is all but the two "
        f"passes; medians of {given['repeats']} interleaved samples"
    )
