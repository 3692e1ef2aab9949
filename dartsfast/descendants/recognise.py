"""What a candidate operation computes, by what its ``forward`` does: a trace over the layers it calls.

Never by the name of its class nor by its children alone: an operation with the children of a separable
convolution that adds its input at the end is none.
"""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dartsfast.caches import Cache
from dartsfast.fused.edge import Operation
from dartsfast.fused.read import chain, pool, pooled, reduction, stage
from dartsfast.modules.plain import difference, is_as_built

RELU = nn.ReLU()
"""What stands for a call of a function that is one."""

_KINDS = (nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Recognised:
    """An operation that kernels serve.

    Attributes:
        operation: what they compute, with the module's own weights and norms; of kind ``library`` where
            torch's own layers do.
        stride: of what reads the source.
        relu: whether convolutions begin with relu.
        channels: of the source, and of the result; None: any, and the same.
        layers: the modules that compute it otherwise.
    """

    operation: Operation
    stride: int
    relu: bool
    channels: tuple[int, int] | None
    layers: tuple[nn.Module, ...]


def layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's own layers, which is not looked into."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, _CONTAINERS)


def recognise(module: nn.Module) -> Recognised | str:
    """Return what a module computes, or why kernels do not serve it."""
    if layer(module):
        return _skip() if type(module) is nn.Identity else _of_layers([module])
    inner = [m for m in module.modules() if not layer(m)]
    if any(not _is_served(m) for m in inner if "forward" in m.__dict__):
        return "it has a forward of its own"
    if any(any(m.__dict__[name] for name in _HOOKS) for m in inner[1:]):
        return "modules within have hooks"
    graph = _traced(module)
    return graph if isinstance(graph, str) else _of_graph(module, graph)


def _is_served(module: nn.Module) -> bool:
    """Whether the forward that a module has of its own is the one that it got here."""
    return type(module.__dict__.get("forward")).__name__ == "Served"


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SIMPLE = (int, float, str, bool, type(None))
_TORCHS_OWN = frozenset(nn.Module().__dict__) - {"training"}
REPLICATE = "_replicate_for_data_parallel"
"""What ``torch.nn.DataParallel`` calls for a copy; of operations that were recognised their own."""
_traces: Cache[fx.Graph | str] = Cache(1024)
# What forwards raise that take what stands for a tensor for a number or a condition.
_OF_TRACES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def _traced(module: nn.Module) -> fx.Graph | str:
    """Return the graph of a module's forward, or that of another which is the same."""
    key = signature(module)
    return _trace(module) if key is None else _traces.get(key, lambda: _trace(module))


def _trace(module: nn.Module) -> fx.Graph | str:
    """Return the graph of a module's forward, or why there is none.

    A twin of the module is traced, whose layers write down that they are called. The trace of torch.fx itself
    has the modules of the whole process do so, those that other threads call too.
    """
    tracer = fx.Tracer()
    tracer.graph, tracer.tensor_attrs = fx.Graph(), {}
    tracer.root = twin = _twin(module, tracer)
    before = _state(twin)
    try:
        forward, args = tracer.create_args_for_root(type(module).forward, True)
        tracer.create_node("output", "output", (tracer.create_arg(forward(*args)),), {})
    except _OF_TRACES as error:
        return f"its forward cannot be traced ({type(error).__name__})"
    if _state(twin) != before:
        return "its forward draws random numbers or sets attributes"
    return tracer.graph


def _twin(module: nn.Module, tracer: fx.Tracer) -> nn.Module:
    """Return a module with the attributes of another, and twins of what is within, whose layers are nodes."""

    def called(name: str, *args: Any, **options: Any) -> Any:
        return tracer.create_proxy("call_module", name, args, options)

    twins: dict[int, nn.Module] = {}
    for name, m in module.named_modules():
        kind: Any = type(m)
        twins[id(m)] = twin = kind.__new__(kind)
        twin.__dict__.update(m.__dict__)
        twin.__dict__.pop("forward", None)
        if layer(m):
            twin.__dict__["forward"] = functools.partial(called, name)
    for twin in twins.values():
        children = twin.__dict__["_modules"].items()
        twin.__dict__["_modules"] = {key: None if m is None else twins[id(m)] for key, m in children}
    return twins[id(module)]


def signature(module: nn.Module) -> Any:
    """Return all that a forward may go by beside its layers' tensors; None where that is not plain values."""
    found: list[Any] = []
    for name, m in module.named_modules():
        found += [name, type(m), type(m).forward]
        if layer(m):
            continue
        for key, value in m.__dict__.items():
            if key in _TORCHS_OWN or key in ("forward", REPLICATE):
                continue
            if not isinstance(value, _SIMPLE):
                return None
            found += [key, type(value), value]
        if m._parameters or m._buffers:
            return None
    return tuple(found)


def _state(module: nn.Module) -> list[Any]:
    """Return what a forward without side effects leaves as it is."""
    own = [list(map(id, m.__dict__.values())) for m in module.modules() if not layer(m)]
    return [random.getstate(), torch.get_rng_state().tolist(), own]


def _of_graph(module: nn.Module, graph: fx.Graph) -> Recognised | str:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        return "its forward takes more than one argument"
    (source,) = inputs
    (output,) = (node for node in graph.nodes if node.op == "output")
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    if output.args[0] is source and not nodes:
        return _skip()
    called = [_called(module, node) for node in nodes]
    if (stride := _zero(nodes, source, output.args[0])) is not None:
        return Recognised(Operation("zero"), stride, True, None, ())
    if (found := _reduction(nodes, called, source, output.args[0])) is not None:
        return found
    last = source
    for node, one in zip(nodes, called, strict=True):
        if one is None or node.args[:1] != (last,) or len(node.args) > 1 or not _alone(node):
            return f"its forward calls {', '.join(map(_name, nodes))}"
        last = node
    return (
        _of_layers([one for one in called if one is not None])
        if output.args[0] is last
        else "more than a chain"
    )


def _alone(node: fx.Node) -> bool:
    return not node.kwargs or dict(node.kwargs) == {"inplace": False}


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _called(module: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the layer that a node calls, or what stands for relu."""
    if node.op == "call_module":
        return module.get_submodule(str(node.target))
    if node.target in (F.relu, torch.relu) or (node.op, node.target) == ("call_method", "relu"):
        return RELU
    return None


def _skip() -> Recognised:
    return Recognised(Operation("skip"), 1, True, None, ())


def _zero(nodes: Sequence[fx.Node], source: fx.Node, output: Any) -> int | None:
    """Return the stride of ``x[:, :, ::s, ::s].mul(0.0)``, or None for anything else."""
    if not nodes or nodes[-1] is not output or _name(nodes[-1]) != "mul" or nodes[-1].kwargs:
        return None
    *before, last = nodes
    if len(last.args) != 2 or isinstance(last.args[1], fx.Node) or last.args[1] != 0:
        return None
    if not before:
        return 1 if last.args[0] is source else None
    view = before[0]
    if len(before) > 1 or view.target is not operator.getitem or last.args[0] is not view:
        return None
    every = slice(None)
    for stride in (1, 2):
        step = slice(None, None, stride)
        if view.args == (source, (every, every, step, step)):
            return stride
    return None


def _reduction(
    nodes: Sequence[fx.Node], called: Sequence[nn.Module | None], source: fx.Node, output: Any
) -> Recognised | str | None:
    """Return relu, two strided convolutions, the second shifted by a pixel, and a norm; else None."""
    if len(nodes) != 6 or nodes[-1] is not output or any(node.kwargs.keys() - {"dim"} for node in nodes):
        return None
    cats = [node for node in nodes if node.target in (torch.cat, torch.concat)]
    views = [node for node in nodes if node.target is operator.getitem]
    if len(cats) != 1 or len(views) != 1:
        return None
    cat, view, relu, norm = cats[0], views[0], nodes[0], nodes[-1]
    every, rest = slice(None), slice(1, None)
    pieces: Any = cat.args[0]
    if tuple(cat.args[1:]) + tuple(cat.kwargs.values()) != (1,) or len(pieces) != 2 or norm.args != (cat,):
        return None
    first, second = pieces
    wired = (
        relu.args == (source,)
        and view.args == (relu, (every, every, rest, rest))
        and first.args == (relu,)
        and second.args == (view,)
    )
    layers: list[Any] = [
        one for one in (called[nodes.index(n)] for n in (relu, first, second, norm)) if one is not None
    ]
    kinds = [nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]
    if not wired or list(map(type, layers)) != kinds:
        return None
    if (reason := _unfit(layers)) is not None:
        return reason
    conv_1, conv_2, bn = layers[1:]
    found = reduction(conv_1, conv_2, bn)
    if found is None:
        return _why(layers)
    channels = conv_1.weight.shape[1], 2 * conv_1.weight.shape[0]
    return Recognised(found, 2, True, channels, tuple(layers))


def _unfit(layers: Sequence[nn.Module]) -> str | None:
    """Say why layers, whatever their order, are none that kernels serve; None where they may be."""
    for one in layers:
        if type(one) not in _KINDS:
            return f"it calls {type(one).__name__}"
        # A layer that is an operation by itself; its hooks run around what it got as its forward.
        operation = _is_served(one) and is_as_built(type(one))
        if not operation and (reason := difference(one, type(one))) is not None:
            return reason
    first = layers[0]
    if isinstance(first, nn.ReLU) and first.inplace:
        return "its ReLU changes the input in place"
    return None


def _of_layers(layers: list[Any]) -> Recognised | str:
    if (reason := _unfit(layers)) is not None:
        return reason
    kinds = [type(one) for one in layers]
    if kinds[0] in (nn.MaxPool2d, nn.AvgPool2d):
        return _pool(layers)
    relu = kinds[0] is nn.ReLU
    rest = layers[relu:]
    kinds = kinds[relu:]
    C, B = nn.Conv2d, nn.BatchNorm2d
    if kinds not in ([C, B], [C, C, B], [C, C, B, nn.ReLU, C, C, B]):
        return f"a chain of {', '.join(type(one).__name__ for one in layers)}"
    stride = rest[0].stride[0]
    if len(rest) == 2:
        stages = [stage(None, rest[0], rest[1], stride)]
    else:
        stages = [stage(rest[0], rest[1], rest[2], stride)]
        stages += [stage(rest[4], rest[5], rest[6], 1)] if len(rest) > 3 else []
    found = chain(stages)
    if found is None and len(rest) == 2 and _keeps_size(rest[0]):
        sizes = _in_channels(rest[0]), rest[0].out_channels
        return Recognised(Operation("library"), stride, relu, sizes, tuple(layers))
    if found is None:
        return _why(layers)
    channels = _in_channels(rest[0]), found.parts[-1].weights[-1].shape[0]
    return Recognised(found, stride, relu, channels, tuple(layers))


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Whether a convolution gives an image as large as a stride makes it."""
    if conv.stride not in ((1, 1), (2, 2)) or isinstance(conv.padding, str):
        return False
    each = zip(conv.kernel_size, conv.padding, conv.dilation, strict=True)
    return all(k % 2 == 1 and p == d * (k - 1) // 2 for k, p, d in each)


def _in_channels(conv: nn.Conv2d) -> int:
    return conv.weight.shape[1] * conv.groups


def _pool(layers: list[Any]) -> Recognised | str:
    kinds = [type(one) for one in layers[1:]]
    stride = layers[0].stride
    stride = stride if isinstance(stride, int) else stride[0]
    if stride not in (1, 2) or kinds not in ([], [nn.BatchNorm2d]):
        return "a pool of another stride, or with more after it than a norm"
    if not kinds:
        half = pooled(layers[0], stride)
        found = None if half is None else Operation("pool", (half, None))
        channels = None
    else:
        found = pool(layers[0], layers[1], stride)
        channels = (layers[1].num_features,) * 2
    return _why(layers) if found is None else Recognised(found, stride, True, channels, tuple(layers))


def _why(layers: Sequence[Any]) -> str:
    """Say what about layers of the right kinds kernels do not serve."""
    found = list(_reasons(layers))
    return f"it has {', '.join(dict.fromkeys(found))}" if found else "sizes that kernels do not serve"


def _reasons(layers: Sequence[Any]) -> Iterator[str]:
    for one in layers:
        if isinstance(one, nn.Conv2d):
            if one.bias is not None:
                yield "a bias"
            if one.kernel_size != (1, 1) and one.groups == 1:
                yield f"a dense {one.kernel_size[0]}x{one.kernel_size[1]} convolution"
        elif isinstance(one, nn.BatchNorm2d) and one.weight is not None:
            yield "a norm with an affine"
        elif isinstance(one, nn.AvgPool2d) and one.count_include_pad:
            yield "an average that counts its padding"
