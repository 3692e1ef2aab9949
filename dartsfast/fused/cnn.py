"""The CNN cell on the fused operators. The modules stay the owners of weights and running statistics.

Images between cells are [N, C, H, W] in channels_last memory, the same memory as the operators'
[N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dartsfast.caches import Cache
from dartsfast.cnn.operations import FactorizedReduce
from dartsfast.constants import stands_for_others
from dartsfast.fused.edge import Edge, Stage
from dartsfast.fused.forward import Node, Setting, ones
from dartsfast.fused.images import _Affine, _ChannelsLast, _Concatenate, _Patches, as_stored, nchw, nhwc
from dartsfast.fused.partial import Parts, shared
from dartsfast.fused.planning import Part
from dartsfast.fused.programs import Prepared
from dartsfast.fused.read import are, moves, read
from dartsfast.fused.watch import Watch
from dartsfast.modules.plain import is_plain_tree
from dartsfast.modules.recompute import applied
from dartsfast.ops.contract import eager, require

_MOST_KEPT = 64  # a cell whose nodes are programs of their own has half a dozen for every shape


class _Reading:
    """What modules were read as, and the programs made of it.

    The last two of an owner are known: modules that are evaluated between epochs are as they were
    afterwards, and a recording of what ran before finds the tables that it reads.
    """

    _known: WeakKeyDictionary[nn.Module, list[_Reading]] = WeakKeyDictionary()

    def __init__(self, watch: Watch, altered: Sequence[bool]) -> None:
        self._watch, self.altered = watch, altered
        self._found: Cache[Any] = Cache(_MOST_KEPT)

    @staticmethod
    def of(owner: nn.Module, roots: Sequence[nn.Module], altered: Callable[[], Sequence[bool]]) -> _Reading:
        """Return the reading of an owner's modules, a new one if neither of the last two is of them.

        The owner is none of them: it is known as long as it lives, they live as long as it is known.
        """
        known = _Reading._known.setdefault(owner, [])
        unchanged = (reading for reading in known if reading._watch.unchanged(roots))
        found = next(unchanged, None) or _Reading(Watch(roots), altered())
        if known[:1] != [found]:
            known[:] = [found, *(other for other in known[:1])]
        return found

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what ``make`` made for ``key``, unless that was long ago: images may be of many shapes."""
        return self._found.get(key, make)


@eager
def stem(
    owner: nn.Module, module: Any, images: Tensor, storage: torch.dtype | None, memory: str = "recompute"
) -> Tensor:
    """Convolution 3x3 and batch norm with affine: [N, 3, H, W] to [N, C, H, W]; any other stem as it is.

    ``owner`` is the network, as long as which what was read is known. With ``memory="cell"`` only ``images``
    are kept for the backward, unless images are stored in half precision.
    """
    built = type(module) is nn.Sequential and is_plain_tree(module)
    if not built or not are(module, (nn.Conv2d, nn.BatchNorm2d)):
        return module(images)
    conv, norm = module
    shape = conv.in_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    usual = shape == (3, (3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"
    if not usual or conv.bias is not None or norm.weight is None or norm.bias is None or not moves(norm):
        return module(images)
    if images.dtype != conv.weight.dtype:
        if not torch.is_autocast_enabled(images.device.type) or images.dtype == torch.float64:
            return module(images)  # which says that they do not go together
        images = images.to(conv.weight.dtype)
    reading = _Reading.of(owner, [module], lambda: [])
    edge = reading.get("edge", lambda: Edge(1, (0,), relu=False, single=[Stage((conv.weight,), 1, norm)]))
    again = memory == "cell" and storage is None and torch.is_grad_enabled()
    # Cheap enough to be computed again, except that half precision keeps what it always kept.
    inner = "recompute" if storage is None and not again else "store"
    first = iter([True])  # of two times only one moves running statistics

    def run(images: Tensor) -> Tensor:
        patches = _Patches.apply(images)
        moves = next(first, False)
        out = _single(reading, edge, patches, as_stored(patches, storage), inner, storage, moves=moves)
        return nchw(_Affine.apply(out, norm.weight, norm.bias, as_stored(out, storage)))

    return checkpoint(run, images, use_reentrant=False, preserve_rng_state=False) if again else run(images)


@eager
def cell(
    module: Any, images: Sequence[Tensor], weights: Tensor, memory: str, storage: torch.dtype | None
) -> Tensor:
    """Run a search cell, ``weights`` [edges, ops] being the mixing weights of its edges' MixedOps.

    Edges that are altered run as the modules that they are. What is kept for the backward is kept as
    ``storage``, unless ``memory`` is ``store`` only what lies between two passes; None: as it is computed.
    """
    preprocess, mixed = [module.preprocess0, module.preprocess1], list(module._ops)
    reading = _Reading.of(module, [*preprocess, *mixed], module._altered_edges)
    require(
        weights.dim() == 2 and len(weights) >= len(mixed),
        f"mixing weights must be [{len(mixed)} edges, operations], got {list(weights.shape)}",
    )
    require(
        all(image.device == weights.device for image in images),
        f"a cell's images are on {images[0].device}, its mixing weights on {weights.device}: move all of the "
        "network there (nn.DataParallel leaves alphas where they are; take DistributedDataParallel)",
    )
    columns = weights.shape[1]
    share = shared(mixed, _setting(images, weights, memory, storage)) if hasattr(mixed[0], "share") else 1

    def edges(share: int) -> tuple[list[Edge], list[list[Edge]], list[bool]]:
        found, altered = reading.get(
            ("edges", columns, share), lambda: _edges(preprocess, mixed, columns, reading.altered, share)
        )
        return found[:2], _by_node(found[2:], module._steps), altered

    first, nodes, altered_edges = edges(share)
    empty = share > 1 and not all(edge.ops for node in nodes for edge in node)
    served = not empty and _served(first, nodes, altered_edges)
    if served and share == 1:
        return nchw(_whole(reading, first, nodes, module._multiplier, images, weights, memory, storage))
    if share > 1 and not served:
        first, nodes, altered_edges = edges(1)
    states = [
        _preprocessed(reading, m, e, x, memory, storage)
        for m, e, x in zip(preprocess, first, images, strict=True)
    ]
    if served:
        parts = Parts(states, mixed[:2], share)
        return nchw(_partly(reading, parts, nodes, module._multiplier, weights, memory))
    apart = _by_node(altered_edges, module._steps)
    offset = 0
    for node, altered in zip(nodes, apart, strict=True):
        rows = slice(offset, offset + len(node))
        states.append(_node(reading, node, mixed[rows], altered, states, weights[rows], memory, storage))
        offset += len(node)
    return nchw(_Concatenate.apply(*states[-module._multiplier :]))


def _edges(
    preprocess: Sequence[nn.Module], mixed: Sequence[Any], columns: int, altered: Sequence[bool], share: int
) -> tuple[list[Edge], list[bool]]:
    """Return the edges, and which of ``mixed`` run as the modules that they are.

    Those do too that share weights or norms with an edge before them: autograd adds their gradients. Edges
    that mix one of ``share`` parts of the channels are the edges within; the last column is not theirs.
    """
    if share > 1:
        mixed, columns = [edge.mixed for edge in mixed], columns - 1
    altered = [apart or hasattr(op, "share") for op, apart in zip(mixed, altered, strict=True)]
    found = [read([m], 2 if isinstance(m, FactorizedReduce) else 1) for m in preprocess]
    # An operation without a column has no weight and takes no part.
    found += [
        Edge(1) if apart else read(islice(op._ops, columns), op.stride)
        for op, apart in zip(mixed, altered, strict=True)
    ]
    seen: set[int] = set()
    shares = []
    for k, edge in enumerate(found):
        own = [id(thing) for thing in edge.owned()]
        shares.append(len(set(own)) < len(own) or not seen.isdisjoint(own))
        if shares[k]:
            found[k] = Edge(1)
        seen.update(own)
    return found, [a or b for a, b in zip(altered, shares[len(preprocess) :], strict=True)]


def _served(first: Sequence[Edge], nodes: Sequence[Sequence[Edge]], altered: Sequence[bool]) -> bool:
    """Whether kernels serve all of a cell, so that it is one program."""
    extras = any(edge.extras for node in (first, *nodes) for edge in node)
    empty = not all(edge.ops for edge in first) or not all(any(e.ops for e in node) for node in nodes)
    return not extras and not empty and not any(altered)


def _by_node(edges: Sequence[Any], steps: int) -> list[list[Any]]:
    """Cut one entry an edge into those of every node."""
    rest = iter(edges)
    return [list(islice(rest, 2 + i)) for i in range(steps)]


def _whole(
    reading: _Reading,
    first: Sequence[Edge],
    nodes: Sequence[Sequence[Edge]],
    multiplier: int,
    images: Sequence[Tensor],
    weights: Tensor,
    memory: str,
    storage: torch.dtype | None,
) -> Tensor:
    """Run a cell that kernels serve altogether: states 0 and 1 are its inputs, 2 and 3 those preprocessed."""
    inputs = [_ChannelsLast.apply(image) for image in images]
    setting = _setting(inputs, weights, memory, storage)

    def prepare() -> Prepared:
        rows = iter(range(weights.shape[0]))
        graph = [Node([(k, edge, None)]) for k, edge in enumerate(first)]
        graph += [Node([(2 + j, edge, next(rows)) for j, edge in enumerate(node)]) for node in nodes]
        return Prepared(graph, multiplier, setting)

    stored = [nhwc(as_stored(x, setting.kept_as)) for x in images] if setting.kept_as else ()
    return reading.get((setting, len(nodes), multiplier), prepare)(inputs, weights, stored=stored)


def _partly(
    reading: _Reading,
    parts: Parts,
    nodes: Sequence[Sequence[Edge]],
    multiplier: int,
    weights: Tensor,
    memory: str,
) -> Tensor:
    """Run nodes whose edges mix a part of the channels."""
    setting = _setting(parts.inputs, weights, memory, None)
    key = "partly", parts.share, setting, multiplier, len(nodes)
    column = weights.shape[1] - 1
    prepared = reading.get(key, lambda: Prepared(parts.nodes(nodes, column), multiplier, setting))
    return prepared(parts.inputs, weights)


def _preprocessed(
    reading: _Reading, module: nn.Module, edge: Edge, image: Tensor, memory: str, storage: torch.dtype | None
) -> Tensor:
    if edge.extras or not edge.ops:
        return nhwc(module(image)).contiguous()
    stored = nhwc(as_stored(image, storage if memory == "store" else None))
    return _single(reading, edge, _ChannelsLast.apply(image), stored, memory, storage)


def _single(
    reading: _Reading,
    edge: Edge,
    x: Tensor,
    stored: Tensor,
    memory: str,
    storage: torch.dtype | None,
    *,
    moves: bool = True,
) -> Tensor:
    """Run an edge whose operation is not weighted."""
    weights = ones(x.dtype, x.device)
    setting = replace(_setting([x], weights, memory, storage), moves=moves)
    graph = [Node([(0, edge, None)])]
    prepared = reading.get((id(edge), setting), lambda: Prepared(graph, 1, setting))
    return prepared([x], weights, stored=[stored] if setting.kept_as else ())


def _node(
    reading: _Reading,
    edges: Sequence[Edge],
    mixed: Sequence[Any],
    altered: Sequence[bool],
    states: Sequence[Tensor],
    weights: Tensor,
    memory: str,
    storage: torch.dtype | None,
) -> Tensor:
    """Run a node some of whose operations are ordinary modules."""
    found = []
    if any(edge.ops for edge in edges):
        extras = [
            [nhwc(applied(op, memory, nchw(x))) for op in edge.extras]
            for edge, x in zip(edges, states, strict=False)
        ]
        shapes = [[tuple(extra.shape) for extra in group] for group in extras]
        setting = _setting(states, weights, memory, storage)
        graph = [Node([(j, edge, j) for j, edge in enumerate(edges)], shapes)]
        prepared = reading.get(("node", setting, str(shapes)), lambda: Prepared(graph, 1, setting))
        stored = [as_stored(x, setting.kept_as) for x in states] if setting.kept_as else ()
        given = [extra for group in extras for extra in group]
        found.append(prepared(states, weights, given, stored))
    else:  # nothing but zeros, or edges that run as they are: the modules know what shape that is
        altered = [True] * len(edges)
    for op, x, row, ordinary in zip(mixed, states, weights, altered, strict=True):
        if ordinary:
            found.append(nhwc(applied(op, memory, nchw(x), row)).to(weights.dtype))
    return sum(found[1:], found[0]).contiguous()


def _setting(inputs: Sequence[Tensor], weights: Tensor, memory: str, storage: torch.dtype | None) -> Setting:
    shapes = tuple(tuple(x.shape) for x in inputs)
    modes = torch.is_grad_enabled(), stands_for_others(), Part.current()
    return Setting(shapes, tuple(weights.shape), weights.dtype, weights.device, memory, storage, *modes)
