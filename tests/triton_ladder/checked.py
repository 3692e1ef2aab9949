"""Runs Triton kernels in Triton's interpreter and checks every access to memory.

Under ``Checked`` a launch raises ``KernelError`` where a program

- loads or stores outside of the tensor that the pointer was made from: the elements of the view that the
  launch got, not of its storage. A pointer carries the number of its tensor in bits that addresses do not
  use, so a neighbour in memory is no alibi;
- touches an element that another program of the same launch wrote, or writes one that another read: a race;
- reads back what it stored itself without a barrier between: another thread may hold it;
- stores two values into one element at once;
- reads what nothing has written: memory is unwritten from ``empty`` and its kin until a store or an
  operator of PyTorch writes it, and holds NaN until then;
- writes an operator's input (in ``run``);
- uses an atomic operation: the order of programs would decide.

A masked load without ``other`` gives NaN where the mask is off, as a device may. Programs run in the order
that is asked for: a result that depends on the order has other bits.

What this cannot see: the threads of a program (a race between them, what they share, a barrier that
only some reach), warps' memory order, numbers that a device computes otherwise (see ``mended``), and
launches that overlap: one ends before the next begins, as on one stream.
"""

import contextlib
import random
from unittest import mock

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from dartsfast.kernels import OPERATORS
from op_calls import spared
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from dartsfast.ops.contract import CONTRACTS

ORDERS = ("forward", "reverse", "random")
NOBODY, SEVERAL = -1, -2
TAG = 48  # the first bit of a pointer that addresses do not use
ADDRESS = np.uint64((1 << TAG) - 1)
ALLOCATIONS = {
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
}


class KernelError(Exception):
    """A kernel did what it must not."""


def run(name, args, order="forward"):
    """Return what the Triton function of operator ``name`` fills, checked; fully written, or it raises."""
    args, written = spared(name, args)
    copies = {id(t) for t in tree_leaves(written)}
    with Checked(order) as memory:
        memory.protect([t for t in tree_leaves(args) if id(t) not in copies])
        out = CONTRACTS[name](*args)
        OPERATORS[name](out, *args)
        memory.require_written(out)
    return [t for t in tree_leaves([out, written]) if t is not None]


class Shadow:
    """What is known of a storage, one entry an element."""

    def __init__(self, tensor, written):
        self.storage = tensor.untyped_storage()  # kept, so that no other takes its address
        self.address, self.itemsize = self.storage.data_ptr(), tensor.element_size()
        size = self.storage.nbytes() // self.itemsize
        self.written = np.full(size, written)
        self.protected = False
        self.stored = np.zeros(size, np.int64)  # the epoch of the last store: see Checked.epoch
        self.new_launch()

    def new_launch(self):
        """Forget which programs wrote and read."""
        self.writer = np.full(len(self.written), NOBODY)
        self.reader = np.full(len(self.written), NOBODY)

    def elements(self, view):
        """Return which elements of the storage are in a view of it."""
        inside = torch.zeros(len(self.written), dtype=torch.bool)
        inside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
        return inside.numpy()


class Argument:
    """A tensor that a launch got."""

    def __init__(self, number, tensor, shadow):
        self.shadow, self.inside = shadow, shadow.elements(tensor)
        self.text = f"tensor {number} of the launch, {list(tensor.shape)} {tensor.dtype}"

    def at(self, addresses, itemsize):
        """Return the elements of the storage that bytes' addresses stand for; ``None`` if one is outside."""
        shadow = self.shadow
        at, rest = np.divmod(addresses.astype(np.int64) - shadow.address, shadow.itemsize)
        good = (rest == 0) & (at >= 0) & (at < len(self.inside)) & (itemsize == shadow.itemsize)
        return at if good.all() and self.inside[at].all() else None


class Checked(TorchDispatchMode):
    """While entered, launches are checked and run their programs in ``order``, one of ``ORDERS``."""

    def __init__(self, order="forward"):
        super().__init__()
        self.order = order
        self.shadows = {}
        self.patches = contextlib.ExitStack()
        self.kernel, self.arguments, self.schedule = "", [], iter(())
        self.program = NOBODY
        self.epoch = 0  # goes up with every program and every barrier

    def __enter__(self):
        builder = interpreter.InterpreterBuilder
        for owner, name, patch in (
            (interpreter.GridExecutor, "__call__", self._launch),
            (interpreter, "_implicit_cvt", self._argument),
            (builder, "set_grid_dim", self._start),
            (builder, "set_grid_idx", self._program),
            (builder, "create_barrier", self._barrier),
            (builder, "create_masked_load", self._load),
            (builder, "create_masked_store", self._store),
            (builder, "create_atomic_rmw", self._atomic),
            (builder, "create_atomic_cas", self._atomic),
        ):
            self.patches.enter_context(_patched(owner, name, patch))
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        return super().__exit__(*error)

    def protect(self, tensors):
        """Let no kernel write the tensors."""
        for t in tree_leaves(tensors):
            if isinstance(t, torch.Tensor):
                self._shadow(t).protected = True

    def require_written(self, tensors):
        """Raise unless every element of the tensors has been written."""
        for number, t in enumerate(tree_leaves(tensors)):
            if isinstance(t, torch.Tensor) and not self._written(t):
                raise KernelError(f"output {number}, {list(t.shape)}, was left unwritten in part")

    # What PyTorch's operators do to memory.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        allocates = func.overloadpacket in ALLOCATIONS
        written = []
        for place, argument in enumerate(func._schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            tensors = [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += tensors
            elif not (allocates or func.is_view or all(self._written(t) for t in tensors)):
                raise KernelError(f"{func} reads what nothing has written")
        out = func(*args, **kwargs)
        if allocates and out.numel():
            out.untyped_storage().fill_(0xFF)  # NaN of every floating-point type
            self.shadows[out.untyped_storage().data_ptr()] = Shadow(out, written=False)
        for t in written:
            shadow = self._shadow(t)
            shadow.written |= shadow.elements(t)
        return out

    def _shadow(self, tensor):
        address = tensor.untyped_storage().data_ptr()
        if address == 0:
            return Shadow(tensor, written=True)
        if address not in self.shadows:
            self.shadows[address] = Shadow(tensor, written=True)
        return self.shadows[address]

    def _written(self, tensor):
        with _disable_current_modes():
            shadow = self.shadows.get(tensor.untyped_storage().data_ptr())
            return shadow is None or shadow.written[shadow.elements(tensor)].all()

    # What a launch does to memory. ``original`` is the interpreter's function.

    def _launch(self, original, executor, *args, **kwargs):
        self.kernel, self.arguments = executor.fn.__name__, []
        with _disable_current_modes():
            try:
                original(executor, *args, **kwargs)
            except interpreter.InterpreterError as error:
                raise _root(error) from None

    def _argument(self, original, arg):
        handle = original(arg)
        if hasattr(arg, "data_ptr"):
            shadow = self._shadow(arg)
            shadow.new_launch()
            self.arguments.append(Argument(len(self.arguments), arg, shadow))
            handle.handle.data = handle.handle.data + np.uint64(len(self.arguments) << TAG)
        return handle

    def _start(self, original, builder, *grid):
        original(builder, *grid)
        schedule = list(np.ndindex(*grid))
        if self.order == "reverse":
            schedule.reverse()
        elif self.order == "random":
            random.Random(0).shuffle(schedule)
        self.schedule = iter(schedule)

    def _program(self, original, builder, *_):
        place = next(self.schedule)
        original(builder, *place)
        self.program = int(np.ravel_multi_index(place, builder.grid_dim))
        self.epoch += 1

    def _barrier(self, original, builder):
        self.epoch += 1

    def _load(self, original, builder, pointers, mask, other, *options):
        dtype = interpreter._get_np_dtype(pointers.get_element_ty())
        for text, shadow, at in self._elements(pointers, mask, dtype):
            self._require(shadow.written[at].all(), f"reads what nothing has written in {text}")
            writer, reader = shadow.writer[at], shadow.reader[at]
            self._require_alone("reads what", "wrote", writer, text)
            self._require(
                (shadow.stored[at] != self.epoch).all(),
                f"reads back what it stored into {text} without a barrier",
            )
            alone = (reader == NOBODY) | (reader == self.program)
            shadow.reader[at] = np.where(alone, self.program, SEVERAL)
        if other is None:
            poison = np.full([*pointers.data.shape, dtype.itemsize], 0xFF, np.uint8).view(dtype)[..., 0]
            other = interpreter.TensorHandle(poison, pointers.get_element_ty())
        return original(builder, _untagged(pointers), mask, other, *options)

    def _store(self, original, builder, pointers, value, mask, *options):
        found = list(self._elements(pointers, mask, value.data.dtype))
        for text, shadow, at in found:
            self._require(not shadow.protected or not len(at), f"writes an operator's input, {text}")
            self._require_alone("writes what", "wrote", shadow.writer[at], text)
            self._require_alone("writes what", "read", shadow.reader[at], text)
            shadow.written[at], shadow.writer[at], shadow.stored[at] = True, self.program, self.epoch
        original(builder, _untagged(pointers), value, mask, *options)
        stored = original_load(builder, _untagged(pointers), mask, None, None, None, False)
        inside = mask.data.astype(bool)
        same = stored.data[inside].tobytes() == value.data[inside].tobytes()
        self._require(same, "stores two values into one element at once")

    def _atomic(self, original, builder, *_):
        self._require(False, "uses an atomic operation")

    def _elements(self, pointers, mask, dtype):
        """Yield every tensor that pointers lead into, and where."""
        # Of a scalar and a block the interpreter makes a mask of 32-bit numbers.
        pointers = np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)]
        tags = pointers >> np.uint64(TAG)
        for tag in np.unique(tags):
            known = 0 < tag <= len(self.arguments)
            self._require(known, "makes a pointer that is no tensor's")
            argument = self.arguments[int(tag) - 1]
            at = argument.at(pointers[tags == tag] & ADDRESS, dtype.itemsize)
            self._require(at is not None, f"goes outside of {argument.text}")
            yield argument.text, argument.shadow, at

    def _require_alone(self, does, did, programs, text):
        others = programs[(programs != NOBODY) & (programs != self.program)]
        if len(others):
            who = "others" if others[0] == SEVERAL else f"program {others[0]}"
            self._require(False, f"{does} {who} {did} in {text}")

    def _require(self, good, what):
        if not good:
            raise KernelError(f"program {self.program} of {self.kernel} {what}")


original_load = interpreter.InterpreterBuilder.create_masked_load


def _patched(owner, name, patch):
    """Return a patch of a function or method: ``patch`` gets what it replaces, then its arguments."""
    original = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *args, **kwargs: patch(original, *args, **kwargs))


def _untagged(pointers):
    return interpreter.TensorHandle(pointers.data & ADDRESS, pointers.dtype)


def _root(error):
    """Return the exception that others were raised from."""
    return _root(error.__cause__) if error.__cause__ else error
