"""The over-complete CNN whose mixing weights are searched (paper section 2.2).

On the reference path it computes with its stock modules; on the others :mod:`dartsfast.fused`
computes with their weights.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dartsfast import fused
from dartsfast.backends import check_memory, check_storage, resolve_backend
from dartsfast.cnn import nasbench201
from dartsfast.cnn.checks import check_images, check_labels, check_programs, check_sizes
from dartsfast.cnn.edges import serve_edges
from dartsfast.cnn.genotypes import PRIMITIVES, Architecture, Genotype
from dartsfast.cnn.mixing import Mixing
from dartsfast.cnn.operations import (  # noqa: F401 - old scripts take all of them from here
    OPS,
    DilConv,
    FactorizedReduce,
    Identity,
    ReLUConvBN,
    SepConv,
    Zero,
    build_op,
)
from dartsfast.cnn.spaces import AnySpace, OneCell, Primitives, as_space, by_edge
from dartsfast.errors import InputError
from dartsfast.fused.linear import linear
from dartsfast.modules.alone import adopt
from dartsfast.modules.arch import best_edges
from dartsfast.modules.plain import difference, served
from dartsfast.modules.recompute import applied, recomputed
from dartsfast.names import CNN_MEMORY_MODES
from dartsfast.sizes import in_bytes


@served
class MixedOp(nn.Module):
    """The mixed operation of an edge: sum of w_k * op_k(x) (equation 2).

    Pools are followed by a batch norm without affine, as in the original. ``primitives`` are those of this
    module's :data:`PRIMITIVES` unless given.
    """

    def __init__(self, C: int, stride: int, primitives: Sequence[str] | None = None) -> None:
        super().__init__()
        self.stride = stride
        self._ops = nn.ModuleList()
        for primitive in PRIMITIVES if primitives is None else primitives:
            op = build_op(primitive, C, stride, False)
            if "pool" in primitive:
                op = nn.Sequential(op, nn.BatchNorm2d(C, affine=False))
            self._ops.append(op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Mix ``x`` [N, C, H, W] with ``weights`` [ops] to [N, C, H/stride, W/stride].

        As in the original, operations beyond the weights and weights beyond the operations take no part.
        """
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=False))


class SkippingMixedOp(MixedOp):
    """A mixed operation that does not compute what has the weight 0: no gradients there, statistics stay."""

    has_kernels = True  # of its own, beside the program of its cell

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Mix as :class:`MixedOp` does; where all weights are 0, return zeros."""
        found = [w * op(x) for w, op in zip(weights, self._ops, strict=False) if w != 0]
        return sum(found) if found else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class Cell(nn.Module):
    """A directed acyclic graph of mixed operations: every node sees both inputs and all earlier nodes."""

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        *,
        backend: str | None = None,
        memory: str = "store",
        storage_dtype: torch.dtype | None = None,
        primitives: Primitives | None = None,
        mixed_op: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self._backend = backend or "reference"
        self.preprocess0: nn.Module
        if reduction_prev:
            self.preprocess0 = FactorizedReduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        self._steps = steps
        self._multiplier = multiplier
        self._memory = check_memory(memory, CNN_MEMORY_MODES)
        self._storage_dtype = storage_dtype
        self._ops = nn.ModuleList()
        count = sum(2 + i for i in range(steps))
        spaces = [()] * count if primitives is None else [(row,) for row in by_edge(primitives, count)]
        for i in range(steps):
            for j in range(2 + i):
                stride = 2 if reduction and j < 2 else 1
                self._ops.append((mixed_op or MixedOp)(C, stride, *spaces[len(self._ops)]))
        if backend is not None:
            adopt(self)

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor | Sequence[Any]) -> Tensor:
        """Map two cells' outputs, with ``weights`` [edges, ops], to [N, multiplier*C, H, W].

        As in the original, ``weights`` may be a list of rows, each of any length; its edges then run as
        ordinary modules.
        """
        dtype = next(self.parameters(), s0).dtype
        fusable = resolve_backend(self._backend, s0.device, dtype=dtype) != "reference"
        if fusable and isinstance(weights, Tensor):
            # Autocast makes them half, the kernels compute in float32. It does not know the meta device.
            device = s0.device.type
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                s0, s1 = s0.to(dtype), s1.to(dtype)
            # A script's alphas may be of NumPy's float64, its choices of integers.
            return fused.cell(self, [s0, s1], weights.to(dtype), self._memory, self._storage_dtype)
        if fusable:
            _warn_of_altered_edges("their weights are a list, not a tensor: torch.stack its rows")
        if self._memory == "cell" and torch.is_grad_enabled():
            return recomputed(self, functools.partial(self._stock, memory="store"), s0, s1, weights)
        return self._stock(s0, s1, weights, self._memory)

    def _stock(self, s0: Tensor, s1: Tensor, weights: Tensor | Sequence[Any], memory: str) -> Tensor:
        """Return what stock modules make of ``s0`` and ``s1``."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            s = sum(
                applied(self._ops[offset + j], memory, h, weights[offset + j]) for j, h in enumerate(states)
            )
            offset += len(states)
            states.append(s)
        return torch.cat(states[-self._multiplier :], dim=1)

    def _altered_edges(self) -> list[bool]:
        edges: list[Any] = list(self._ops)
        reasons = [op.altered() if hasattr(op, "altered") else difference(op, MixedOp) for op in edges]
        pairs = zip(edges, reasons, strict=True)
        for reason in sorted({why for op, why in pairs if why and not getattr(op, "has_kernels", False)}):
            _warn_of_altered_edges(reason)
        return [reason is not None for reason in reasons]


@functools.cache  # once for each reason, not once an iteration
def _warn_of_altered_edges(reason: str) -> None:
    warnings.warn(f"edges run as ordinary modules, not on kernels: {reason}", stacklevel=2)


class Network(Mixing):
    """The search network: stem, ``layers`` cells (reductions at 1/3 and 2/3), pooling, classifier.

    ``DistributedDataParallel`` does not average the gradients of the alphas, which are no parameters; the
    ``Architect`` does.

    Args:
        C: channels of the first cells.
        num_classes: classes of the classifier.
        layers: number of cells.
        criterion: loss of (logits [N, classes], target [N]).
        steps: intermediate nodes a cell.
        multiplier: nodes concatenated into a cell's output.
        stem_multiplier: channels of the stem, in units of ``C``.
        backend: ``auto``, ``reference``, or a fused backend (see :mod:`dartsfast.backends`).
        memory: ``store``; ``recompute`` to keep only the inputs of nodes (reference: of edges) for the
            backward, ``cell`` those of cells; or a budget for all that a pass takes beside model, data and
            optimisers, such as ``800MB``, ``6GB`` or ``50%`` of what the device has free: the first pass over
            images of a size chooses how every cell keeps, the fastest choice that fits
            (:meth:`fit_memory`).
        storage_dtype: dtype that the convolutions' outputs are kept as, such as torch.bfloat16, with
            float32 arithmetic; None for the network's own. Not on the backend ``reference``.
        primitives: operation names of the search space, keys of ``operations.OPS``, or a
            :class:`~dartsfast.cnn.spaces.Space`; None for those of this module's :data:`PRIMITIVES`. With a
            :class:`~dartsfast.cnn.spaces.OneCell` the network is that of :mod:`dartsfast.cnn.nasbench201`,
            with ``layers`` cells a stage.
        mixed_op: called as ``mixed_op(C, stride, primitives)`` for every edge, returns what stands in the
            place of its :class:`MixedOp`; the edge then runs as the module that it is.
        skip_zero: leave operations of weight 0 uncomputed, as ``if w != 0`` does: they have no gradients, and
            statistics stay. The host waits for the weights of every edge.

    Raises:
        InputError: unknown primitive, backend or memory mode, or sizes that make no network.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: Callable[[Tensor, Tensor], Tensor],
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
        *,
        backend: str = "auto",
        memory: str = "store",
        storage_dtype: torch.dtype | None = None,
        primitives: Sequence[str] | AnySpace | None = None,
        mixed_op: Callable[..., nn.Module] | None = None,
        skip_zero: bool = False,
    ) -> None:
        super().__init__()
        if skip_zero and mixed_op:
            raise InputError("skip_zero is of the usual edges: leave out what a mixed_op of one's own mixes")
        self._mixed_op, self._skip_zero = mixed_op, skip_zero
        mixed_op = SkippingMixedOp if skip_zero else mixed_op
        check_sizes(C, num_classes, layers, steps, multiplier, stem_multiplier)
        self._C = C
        self._num_classes = num_classes
        self._layers = layers
        self._criterion = criterion
        self._steps = steps
        self._multiplier = multiplier
        self._stem_multiplier = stem_multiplier
        self._backend = backend
        self._memory = check_memory(memory, CNN_MEMORY_MODES, budget=True)
        self._fits: list[fused.Fit] = []
        names = list(PRIMITIVES) if primitives is None else primitives
        self._space = as_space(names, steps)
        self._storage_dtype = check_storage(storage_dtype, backend)
        if isinstance(self._space, OneCell):
            self._lay_out_nasbench201(self._space, mixed_op)
        else:
            self._lay_out(mixed_op)
        adopt(self)
        self._initialize_alphas()

    def _lay_out(self, mixed_op: Callable[..., nn.Module] | None) -> None:
        C_curr = self._stem_multiplier * self._C
        self.stem = nn.Sequential(nn.Conv2d(3, C_curr, 3, padding=1, bias=False), nn.BatchNorm2d(C_curr))
        C_prev_prev, C_prev, C_curr = C_curr, C_curr, self._C
        self.cells = nn.ModuleList()
        usual = mixed_op is None and all(row == list(PRIMITIVES) for kind in self._space for row in kind)
        sizes, layers, reduction_prev = (self._steps, self._multiplier), self._layers, False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            if reduction:
                C_curr *= 2
            space: dict[str, Any] = {"primitives": self._space.of(reduction), "mixed_op": mixed_op}
            if usual:  # a Cell or MixedOp that a script has put in the place of ours takes the original's
                space = {}
            cell = Cell(*sizes, C_prev_prev, C_prev, C_curr, reduction, reduction_prev, **space)
            cell._backend, cell._storage_dtype = self._backend, self._storage_dtype
            cell._memory = self._memory if self._memory in CNN_MEMORY_MODES else "recompute"
            reduction_prev = reduction
            self.cells.append(cell)
            C_prev_prev, C_prev = C_prev, self._multiplier * C_curr
        self.global_pooling: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, self._num_classes)
        if self._skip_zero:
            serve_edges(self, [edge for cell in self.cells for edge in cast(Cell, cell)._ops])

    def _lay_out_nasbench201(self, space: OneCell, mixed_op: Callable[..., nn.Module] | None) -> None:
        if mixed_op is not None or self._storage_dtype is not None:
            raise InputError(
                "mixed_op, skip_zero and storage_dtype are of the cells of DARTS: leave them out"
            )
        found = nasbench201.layers(self._C, self._layers, space, self._backend, self._memory)
        self.stem, self.cells, self.global_pooling = found.stem, found.cells, found.pooling
        self.classifier = nn.Linear(found.features, self._num_classes)
        serve_edges(self, [edge for cell in self.cells for edge in cast(Any, cell)._ops], self._memory)

    def new(self) -> Network:
        """Return a network of the same shape on the same device: fresh weights, these alphas."""
        model = self._build(
            *(self._C, self._num_classes, self._layers, self._criterion),
            *(self._steps, self._multiplier, self._stem_multiplier),
            backend=self._backend,
            memory=self._memory,
            storage_dtype=self._storage_dtype,
            primitives=self._space,
            skip_zero=self._skip_zero,
        ).to(self.alphas_normal)
        with torch.no_grad():
            for name in model._arch_names:
                getattr(model, name).copy_(getattr(self, name))
        model._fits = list(self._fits)
        pairs: list[Any] = list(zip(model.cells, self.cells, strict=True))
        for cell, mine in pairs:
            cell._memory = mine._memory
        return model

    def _build(self, *args: Any, **options: Any) -> Network:
        """Return another network of the method; one of its own class says so, with its own options."""
        return Network(*args, mixed_op=self._mixed_op, **options)

    def fit_memory(self, images: Sequence[int], order: int = 1, parts: int = 1) -> fused.Fit:
        """Choose how cells keep so that passes over images [N, 3, H, W] fit the memory budget.

        Images that are smaller in all four take what larger ones took. ``order`` is that of the alphas'
        gradient: passes of the second have copies of the weights beside them, passes over one of several
        ``parts`` of a batch the gradients so far.

        Raises:
            InputError: no budget, none of these cells on kernels, or a budget that nothing fits.
        """
        if self._memory in CNN_MEMORY_MODES:
            raise InputError(f"memory={self._memory!r} is no budget: give the network one, such as 800MB")
        found = next((fit for fit in self._fits if fit.serves(images, order, parts)), None)
        if found is None:
            check_programs(self.backend, f"memory={self._memory!r}")
            found = fused.fit(self, images, in_bytes(self._memory, self.alphas_normal.device), order, parts)
            self._fits.append(found)
        return self._keep(found)

    def fit_to_part(self, images: Sequence[int], parts: int, order: int = 1) -> fused.Fit:
        """Choose how cells keep so that passes over images [N, 3, H, W] take no more memory than those over
        one of so many equal ``parts`` of them with all stored. ``order`` is that of the alphas' gradient.

        Raises:
            InputError: another memory mode than ``store``, none of these cells on kernels, or parts so small
                that nothing fits.
        """
        if self._memory != "store":
            raise InputError(f"memory={self._memory!r} says already how cells keep: leave it out")
        check_programs(self.backend, f"accumulate {parts} with the statistics of the batch")
        self._fits = [fused.fit_to_part(self, images, parts, order)]
        return self._keep(self._fits[0])

    def _keep(self, found: fused.Fit) -> fused.Fit:
        cells: list[Any] = list(self.cells)
        for cell, mode in zip(cells, found.modes, strict=True):
            cell._memory = mode
        return found

    def forward(self, input: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes].

        A stem of one's own takes what it takes.

        Raises:
            InputError: not four dimensions with the stem's channels, or a size that cannot be halved twice.
        """
        check_images(self.stem, input)
        if self._memory not in CNN_MEMORY_MODES and torch.is_grad_enabled():
            self.fit_memory(input.shape)
        kinds = sorted({bool(cell.reduction) for cell in self.cells})
        rows = self.mixing_weights(kinds)
        if self._adjust is not None:
            rows = [self._adjust(found, kind) for found, kind in zip(rows, kinds, strict=True)]
        mixing = dict(zip(kinds, rows, strict=True))
        if self.backend == "reference":
            s0 = s1 = self.stem(input)
        else:
            memory = getattr(self.cells[0], "_memory", "store")
            s0 = s1 = fused.stem(self, self.stem, input, self._storage_dtype, memory)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, mixing[bool(cell.reduction)])
        out = self.global_pooling(s1)
        features = out.view(out.size(0), -1)
        return linear(self.classifier, features) if self.backend == "cpu" else self.classifier(features)

    def _loss(self, input: Tensor, target: Tensor) -> Tensor:
        logits = self(input)
        check_labels(self._criterion, logits, target)
        return self._criterion(logits, target)

    def genotype(self) -> Genotype | Architecture:
        """Read the cells off the alphas: two strongest edges a node, ``none`` left out (section 2.4).

        Of the space of NAS-Bench-201 the strongest operation of every edge.
        """
        if isinstance(self._space, OneCell):
            return nasbench201.strongest(self.strengths(False), self._space)

        def parse(reduction: bool) -> list[tuple[str, int]]:
            strengths = self.strengths(reduction).detach().cpu().numpy()
            inputs = [2 + i for i in range(self._steps)]
            return best_edges(strengths, self._space.of(reduction), inputs, keep=2)

        concat = range(2 + self._steps - self._multiplier, self._steps + 2)
        return Genotype(
            normal=parse(False),
            normal_concat=concat,
            reduce=parse(True),
            reduce_concat=concat,
        )
