"""``dartsfast.accelerate``: models that were not written for it, on fused kernels."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from dartsfast.backends import check_memory, resolve_backend
from dartsfast.descendants.recognise import REPLICATE, Recognised, layer, recognise
from dartsfast.descendants.report import Report
from dartsfast.descendants.served import Served
from dartsfast.descendants.verify import verified
from dartsfast.errors import CheckFailedError, InputError
from dartsfast.modules.alone import adopt

_LISTS = (nn.ModuleList, nn.ModuleDict)
_FEWEST = 8
"""Operations with a convolution, a pool or a norm, below which results that wait cost more than they give."""

_LEAST_WORK = 131072
"""Layers times values of an image, for less of which a sum of few layers costs more as a program."""

_FEW_LAYERS = 2
_FEWEST_VALUES = 16384
"""Operations of fewer layers, one with another, cost less than waiting does for fewer values of an image."""


def accelerate(
    model: Any, *, backend: str = "auto", memory: str = "store", verify: bool = True, strict: bool = False
) -> Any:
    """Have the candidate operations of a model compute on kernels, a sum of them as one node.

    The model stays what it is: classes, names, parameters, ``state_dict``. Operations are recognised by what
    their forward does; what is not recognised runs as it is, as does everything where kernels do not serve
    (other dtypes and devices, autocast, tracing, ``torch.compile``). Gradients are differentiable once.

    Args:
        model: a module, in place; or a class of modules, whose instances are from then on.
        backend: ``auto`` or one of ``dartsfast.backends``.
        memory: ``store``, or ``recompute`` to keep little more than the inputs of sums for the backward.
        verify: whether every distinct operation is computed both ways, in float64 on a small image, and what
            differs left as it is, with a warning.
        strict: whether to raise instead, and where nothing is fused.

    Returns:
        A :class:`Report`, which prints as a table; of a class the class, so that this may decorate one.

    Raises:
        InputError: not a module or class of modules, or an unknown backend or memory mode.
        CheckFailedError: ``strict``, and an operation differs or nothing is fused.
    """
    check_memory(memory)
    resolve_backend(backend)
    options = {"backend": backend, "memory": memory, "verify": verify, "strict": strict}
    if isinstance(model, type) and issubclass(model, nn.Module):
        return _accelerate_class(model, options)
    if not isinstance(model, nn.Module):
        raise InputError(f"accelerate takes a torch.nn.Module or a class of them, got {type(model).__name__}")
    restore(model)
    adopt(model)
    found = list(candidates(model))
    shared = _shared([(m, one) for _, m, one in found if isinstance(one, Recognised)])
    report = Report()
    served = []
    for name, module, one in found:
        if isinstance(one, Recognised) and id(module) in shared:
            one = "it shares weights or norms with another operation"
        if isinstance(one, Recognised) and verify and (difference := verified(module, one)) is not None:
            message = f"{name} ({type(module).__name__}) is not fused: {difference}"
            if strict:
                raise CheckFailedError(message)
            warnings.warn(message, stacklevel=2)
            one = difference
        report.add(module, one)
        if isinstance(one, Recognised):
            served.append((module, one))
    fewest = _fewest_values([one for _, one in served])
    if fewest is None:
        report.refuse(f"nothing is fused: fewer than {_FEWEST} operations compute what kernels serve")
        if strict:
            raise CheckFailedError(report.note)
        return report
    if fewest:
        report.note = (
            f"images of fewer than {fewest} values are left to the operations, which have few layers"
        )
    for module, one in served:
        forward = Served(module, one, backend, memory, fewest, _LEAST_WORK)
        module.__dict__.update({"forward": forward, REPLICATE: forward.replicate})
    return report


def _fewest_values(served: list[Recognised]) -> int | None:
    """Return from how many values of an image on fusing pays; None: from none, with so few operations."""
    layers = [len(one.layers) for one in served if one.operation.kind != "library"]
    if sum(map(bool, layers)) < _FEWEST:
        return None
    return _FEWEST_VALUES if sum(layers) < _FEW_LAYERS * len(layers) else 0


def restore(model: Any) -> None:
    """Undo :func:`accelerate`, of a model or a class: every operation has the forward that it had.

    Raises:
        InputError: not a module or class of modules.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        begin: Any = model.__dict__.get("__init__")
        if hasattr(begin, "_accelerated"):
            type.__setattr__(model, "__init__", begin.__wrapped__)
        return
    if not isinstance(model, nn.Module):
        raise InputError(f"restore takes a torch.nn.Module or a class of them, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), Served):
            del module.__dict__["forward"], module.__dict__[REPLICATE]


def _accelerate_class(kind: type[nn.Module], options: dict[str, Any]) -> type[nn.Module]:
    restore(kind)
    begin = kind.__init__

    @functools.wraps(begin)
    def built(self: nn.Module, *args: Any, **given: Any) -> None:
        begin(self, *args, **given)
        accelerate(self, **options)

    built._accelerated = True  # type: ignore[attr-defined]
    type.__setattr__(kind, "__init__", built)
    return kind


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, Recognised | str]]:
    """Yield the modules within that may be operations, by what they are or why they are none.

    None are layers within an ``nn.Sequential``, which are steps of something else.
    """
    seen = {id(model)}

    def visit(name: str, parent: nn.Module) -> Iterator[tuple[str, nn.Module, Recognised | str]]:
        for short, child in parent.named_children():
            if id(child) in seen or (layer(child) and isinstance(parent, nn.Sequential)):
                continue
            seen.add(id(child))
            path = f"{name}.{short}".lstrip(".")
            found = "" if isinstance(child, _LISTS) else recognise(child)
            if (
                not isinstance(found, str)
                and found.operation.kind == "library"
                and type(parent) not in _LISTS
            ):
                continue  # a part of the network that nothing chooses from
            if isinstance(found, Recognised):
                yield path, child, found
                continue
            inside = list(visit(path, child))
            lists = any(isinstance(m, _LISTS) for m in child.modules())
            served = any(isinstance(one, Recognised) for _, _, one in inside)
            if isinstance(parent, _LISTS) and not lists and not served:
                yield path, child, found
            yield from inside

    yield from visit("", model)


def _shared(found: list[tuple[nn.Module, Recognised]]) -> set[int]:
    """Return the operations that own a weight or norm which another owns too, or twice."""
    owners: dict[int, list[int]] = {}
    for module, one in found:
        own = [
            t for m in one.layers for t in (*m.parameters(), *([m] if isinstance(m, nn.BatchNorm2d) else []))
        ]
        for thing in own:
            owners.setdefault(id(thing), []).append(id(module))
    counts = Counter(thing for thing, modules in owners.items() for _ in modules)
    return {module for thing, modules in owners.items() if counts[thing] > 1 for module in modules}
