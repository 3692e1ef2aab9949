"""What the operators' contracts share: argument checks for shape inference, and registration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves, tree_map

from dartsfast.backends.contracts import CONTRACTS
from dartsfast.errors import InputError
from dartsfast.ops.functional import define_functional

_ONCE = "the fused operators are differentiable once. For second derivatives use backend='reference'"
_REVERSE = (
    "the fused operators are differentiable in reverse mode, by torch.autograd. Use backend='reference'"
)

_library = torch.library.Library("dartsfast", "FRAGMENT")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What operators take. Kernels for CPUs have the first two."""


nothing_to_record = torch._C._AutoDispatchBelowAutograd
"""Context within an autograd node: leaves out autograd's part of every operator, which is in Python."""


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of arithmetic on tensors stored as ``dtype``: float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_dtype(name: str, tensor: Tensor) -> None:
    """Check that operators take tensors of this dtype."""
    if tensor.dtype not in DTYPES:
        raise InputError(f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")


def define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    """Define ``dartsfast::name`` and its shape inference, which also checks the arguments."""
    CONTRACTS[name] = fake
    torch.library.define(f"dartsfast::{name}", schema)
    torch.library.register_fake(f"dartsfast::{name}", fake)
    for vmap in ("FuncTorchBatched", "Batched"):  # the second for torch.autograd.grad(is_grads_batched=True)
        torch.library.impl(f"dartsfast::{name}", vmap, functools.partial(_refuse_vmap, name))
    if "!" in schema:
        define_functional(name, schema, fake)


eager = torch._disable_dynamo
"""Decorator: ``torch.compile`` calls the function as it is; there is nothing in it to be made faster.

Unlike ``torch.compiler.disable`` it does not import the compiler.
"""


def differentiable(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register the first derivative of ``dartsfast::name``, and float32 under autocast."""
    _register_autograd(name, Info(backward, setup))
    for device in ("cpu", "cuda", "xpu"):
        torch.library.impl(f"dartsfast::{name}", f"Autocast{device.upper()}")(_in_float32(name, device))


def _in_float32(name: str, device: str) -> Callable[..., Any]:
    """Return ``dartsfast::name`` under autocast; before torch 2.13 ``register_autocast`` knows no xpu."""
    op = getattr(torch.ops.dartsfast, name).default

    def cast(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.float() if floats and value.device.type == device else value

    def in_float32(*args: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return op(*tree_map(cast, args))

    return in_float32


def differentiable_once(name: str) -> None:
    """Make the derivative of ``dartsfast::name``, itself a backward, raise."""

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError(f"dartsfast::{name} has no derivative: {_ONCE}")

    _register_autograd(name, Info(refuse, None))


def _register_autograd(name: str, info: Info) -> None:
    """Do as ``torch.library.register_autograd``, whose kernel leaves tangents out without a word."""
    kernel = make_autograd_impl(getattr(torch.ops.dartsfast, name).default, info)

    def checked(keys: Any, *args: Any, **options: Any) -> Any:
        refuse_transforms(f"dartsfast::{name}", args)
        return kernel(keys, *args, **options)

    _library.impl(name, checked, "Autograd", with_keyset=True)


class _Once(torch.autograd.Function):
    """The first ``count`` tensors; a derivative of them by any of the others raises."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(f"no second derivative: {_ONCE}")


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make the gradients that a ``Function.backward`` returns refuse to be differentiated.

    ``torch.autograd.function.once_differentiable`` ties its refusal to nothing, so that a derivative by
    one of the function's inputs passes it by and comes out without what it should have raised for.
    """

    @functools.wraps(backward)
    def first(ctx: Any, *g: Any) -> Any:
        with torch.no_grad():
            found = backward(ctx, *g)
        if not torch.is_grad_enabled():
            return found
        given = [t for t in (*g, *ctx.saved_tensors) if isinstance(t, Tensor) and t.requires_grad]
        own = [t for t in found if isinstance(t, Tensor)]
        tied = iter(_Once.apply(len(own), *own, *given))
        return tuple(next(tied) if isinstance(t, Tensor) else t for t in found)

    return first


def not_differentiable(name: str) -> None:
    """Make ``dartsfast::name``, which may write arguments, refuse tensors that autograd follows."""
    op = getattr(torch.ops.dartsfast, name).default
    written = [
        i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write
    ]

    def refuse(*args: Any) -> Any:
        refuse_forward_mode(f"dartsfast::{name}", args)
        tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise RuntimeError(
                f"dartsfast::{name} has no derivative: give it tensors without requires_grad, "
                "or call it under torch.no_grad()"
            )
        with torch._C._AutoDispatchBelowAutograd():
            result = op(*args)
        for i in written:
            torch.autograd.graph.increment_version(args[i])
        return result

    torch.library.impl(f"dartsfast::{name}", "Autograd", refuse)


class Function(torch.autograd.Function):
    """An autograd function that is differentiable once, in reverse mode, and not by ``torch.func``."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run it, unless within a transform of ``torch.func`` or on tensors that have tangents."""
        refuse_transforms("this network", args)
        return super().apply(*args)


def refuse_transforms(name: str, args: Any) -> None:
    """Raise within a transform of ``torch.func``, and where a tensor of ``args`` has a tangent."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(f"torch.func's transforms do not pass through {name}: {_REVERSE}")
    refuse_forward_mode(name, args)


def refuse_forward_mode(name: str, args: Any) -> None:
    """Raise where a tensor has a tangent, as within ``torch.func.jvp``: an operator would leave it out."""
    if forward_ad._current_level < 0:
        return
    for t in tree_leaves(args):
        if isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None:
            raise NotImplementedError(f"{name} has no forward-mode derivative: {_REVERSE}")


def _refuse_vmap(name: str, *args: Any) -> None:
    raise NotImplementedError(
        f"dartsfast::{name} takes no batches of torch.func.vmap, nor of gradients. Use backend='reference'"
    )


def require(good: bool, message: str) -> None:
    """Raise InputError with ``message`` unless ``good``."""
    if not good:
        raise InputError(message)


def check_images(
    name: str, images: Sequence[Tensor], shape: Sequence[int] | None = None, like: Tensor | None = None
) -> None:
    """Check images [N, H, W, C] of one shape, and against ``like``, or else the first of them."""
    first = images[0] if like is None else like
    for x in images:
        require(x.dim() == 4, f"{name} must be [N, H, W, C], got {list(x.shape)}")
        check_dtype(name, x)
        wanted = list(first.shape if shape is None else shape)
        require(list(x.shape) == wanted, f"{name} must be {wanted}, got {list(x.shape)}")
        require(all(n > 0 for n in x.shape), f"{name} must not be empty, got {list(x.shape)}")
        check_like(name, x, first)


def check_like(name: str, tensor: Tensor, like: Tensor) -> None:
    """Check that ``tensor`` is on the device of ``like`` and that one dtype serves the arithmetic on both."""
    same = tensor.dtype == like.dtype or accumulated(tensor.dtype) == accumulated(like.dtype)
    if not same or tensor.device != like.device:  # a message takes longer to write than all checks
        raise InputError(
            f"{name} must be {like.dtype} on {like.device} as the other tensors, "
            f"got {tensor.dtype} on {tensor.device}"
        )


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Check shape, dtype and device of ``tensor``."""
    if tensor.shape != torch.Size(shape):
        raise InputError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
    check_like(name, tensor, like)


def moment_gradient(z: Tensor, stats: Tensor, d_stats: Tensor) -> Tensor:
    """Return coef [..., 4, C] that adds the gradient of mean and variance to that of z.

    dz = k * ((g - m) - (z - mu) * r) with k = 1, m = -d_mean / M, r = -2 d_var / M; ``stats`` and
    ``d_stats`` are [..., 2, C] (mean, biased variance) and M is the number of pixels of z.
    """
    pixels = z.shape[-4] * z.shape[-3] * z.shape[-2]
    d_mean, d_var = d_stats.unbind(-2)
    mean = stats.select(-2, 0)
    return torch.stack([-d_mean / pixels, mean, -2 * d_var / pixels, torch.ones_like(mean)], -2)
