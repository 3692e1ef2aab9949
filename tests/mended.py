"""Mends what in Triton's interpreter no device does.

- ``tl.fma`` rounds the product: it becomes one rounding (float32; float64 keeps two).
- A conversion from float32 to bfloat16 cuts bits off: it becomes rounding to nearest, ties to even, and
  both ways keep NaN and subnormal numbers.
- ``tl.sum`` adds one element after another, as NumPy does: it becomes a tree of halves.
- Every call of a device function patches Triton's language anew, half of all time: once a launch is enough.
  Whether whole numbers overflow is computed and then not looked at: it is left out. Every access makes a
  table of dtypes, and every tensor its shape and its type's name: each is made once. Two blocks of one shape
  need no broadcast.

What is left: a device's tree may be another, and ``tl.dot`` adds in numpy's order; ``exp`` and other
functions are numpy's; float64 multiply-adds round twice; ``tl.dot`` of bfloat16 is wrong.
"""

import contextlib
import dataclasses
import functools
import math
from unittest import mock

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.language.semantic import TritonSemantic

from dartsfast.oracle import arithmetic

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
original_cast, original_fma, original_rounded = Builder.cast_impl, Builder.create_fma, Builder.create_fp_to_fp
original_sum = interpreter.ReduceOps.sum
original_block_type = tl.block_type.__init__
original_broadcast = TritonSemantic.broadcast_impl_value
original_np_dtype = functools.cache(interpreter._get_np_dtype)
OPTIONS = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
patched = set()  # device functions whose language the running launch has patched


@contextlib.contextmanager
def mended():
    """Mend the interpreter within the context."""
    with (
        mock.patch.object(Builder, "cast_impl", cast),
        mock.patch.object(Builder, "create_fp_to_fp", rounded),
        mock.patch.object(Builder, "create_fma", fma),
        mock.patch.object(interpreter.ReduceOps, "sum", tree_sum),
        spared(),
    ):
        yield


@contextlib.contextmanager
def spared():
    """Spare the interpreter half its time within the context, and leave its arithmetic as it is."""
    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launching(interpreter.GridExecutor.__call__)),
        mock.patch.object(interpreter.InterpretedFunction, "__call__", call),
        mock.patch.object(interpreter, "_get_np_dtype", np_dtype),
        mock.patch.object(TritonSemantic, "broadcast_impl_value", broadcast),
        mock.patch.object(tl.core.block_type, "__init__", make_block_type),
        mock.patch.object(tl.core.tensor, "__init__", make_tensor),
        mock.patch.object(interpreter.interpreter_builder, "options", OPTIONS),
    ):
        yield


def broadcast(self, a, b):
    same = a.type.is_block() and b.type.is_block() and a.type.shape == b.type.shape
    return (a, b) if same else original_broadcast(self, a, b)


@functools.cache
def block(sizes, element):
    """Return what ``tl.block_type`` makes of the numbers that are a shape."""
    made = object.__new__(tl.block_type)
    original_block_type(made, element, list(sizes))
    return made.shape, made.numel, made.name


def make_block_type(self, element, shape):
    sizes = tuple([getattr(size, "value", size) for size in getattr(shape, "value", shape)])
    self.element_ty = element
    self.shape, self.numel, self.name = block(sizes, str(element))


@functools.cache
def shape_of(sizes):
    return tl.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(math.prod(sizes))


def make_tensor(self, handle, type):
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = shape_of(tuple(type.shape.values) if type.is_block() else ())


def np_dtype(dtype):
    element = dtype.scalar
    return np.dtype(np.uint64) if element.is_ptr() else original_np_dtype(element)


def cast(self, source, target):
    mended = _bfloat16(source, target)
    return original_cast(self, source, target) if mended is None else mended


def rounded(self, source, target, rounding):
    mended = None if rounding == interpreter._ir.ROUNDING_MODE.RTZ else _bfloat16(source, target)
    return original_rounded(self, source, target, rounding) if mended is None else mended


def fma(self, x, y, z):
    if z.dtype.scalar != tl.float32:
        return original_fma(self, x, y, z)
    x, y, z = (torch.from_numpy(np.array(v)) for v in np.broadcast_arrays(x.data, y.data, z.data))
    return Handle(arithmetic.fma(x, y, z).numpy(), tl.float32)


def tree_sum(self, input):
    if self.keep_dims:
        return original_sum(self, input)
    x = input.handle.data
    x = x.reshape(-1) if self.axis is None else np.moveaxis(x, self.axis, 0)
    while len(x) > 1:  # a power of two
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return self.to_tensor(x[0], input.dtype)


def launching(original):
    def launch(self, *args, **kwargs):
        patched.clear()
        original(self, *args, **kwargs)

    return launch


def call(self, *args, **kwargs):
    if self.fn not in patched:
        interpreter._patch_lang(self.fn)
        patched.add(self.fn)
    return self.rewrite()(*args, **kwargs)


def _bfloat16(source, target):
    """Return the conversion between float32 and bfloat16, ``None`` if it is another."""
    types = source.dtype.scalar, target.scalar
    if types == (tl.float32, tl.bfloat16):
        near = torch.from_numpy(np.array(source.data)).bfloat16()
        return Handle(near.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
    if types == (tl.bfloat16, tl.float32):
        return Handle((source.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    return None
