"""Operators that write arguments, for ``torch.compile`` and ``torch.func.functionalize``.

Both turn a program that writes into one that does not. For operators that are not PyTorch's own the first
has a rule that finds what was written by its distance from the beginning of the memory, as it was when the
program was traced: given another slice of the same shape, the compiled program writes elsewhere
(``backend="aot_eager"``). The second has none. Hence each such operator has a twin here that returns what
the operator would write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def define_functional(name: str, schema: str, fake: Callable[..., Any]) -> None:
    """Define ``dartsfast::<name>functional``, the twin of an operator that has no default arguments.

    It returns what the operator returns, if anything, and then every argument that the operator would write
    (``Tensor(a!)``, ``Tensor(a!)[]``), as it would be then. Functionalisation
    puts it in the operator's place.
    """
    arguments, returns = re.sub(r"\([a-z]!\)", "", schema).split(" -> ")
    listed = arguments.strip("()").split(", ")
    written = [i for i, argument in enumerate(schema.strip("()").split(", ")) if "!" in argument]
    results = [returns, *(listed[i].split()[0] for i in written)]
    twin = f"dartsfast::{name}functional"
    torch.library.define(twin, f"{arguments} -> ({', '.join(r for r in results if r != '()')})")

    def on_copies(op: Callable[..., Any], copy: Callable[[Tensor], Tensor], args: tuple[Any, ...]) -> Any:
        copies = list(args)
        for i in written:
            copies[i] = tree_map_only(Tensor, copy, args[i])
        out = op(*copies)
        found = [*([] if out is None else [out]), *(copies[i] for i in written)]
        return found[0] if len(found) == 1 else tuple(found)

    operator = getattr(torch.ops.dartsfast, name).default
    torch.library.impl(
        twin, "CompositeExplicitAutograd", lambda *args: on_copies(operator, torch.clone, args)
    )
    torch.library.register_fake(twin, lambda *args: on_copies(fake, torch.empty_like, args))
    pure = getattr(torch.ops.dartsfast, f"{name}functional").default

    def functionalized(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)):
            found = pure(*tree_map_only(Tensor, _value, args))
        results = found if isinstance(found, tuple) else (found,)
        for i, new in zip(written, results[-len(written) :], strict=True):
            for old, value in zip(tree_leaves(args[i]), tree_leaves(new), strict=True):
                torch._functionalize_replace(old, value)
                torch._functionalize_commit_update(old)
                torch._sync(old)
        return torch._to_functional_tensor(results[0]) if len(results) > len(written) else None

    torch.library.impl(f"dartsfast::{name}", "Functionalize", functionalized)


def _value(tensor: Tensor) -> Tensor:
    """Return what a functional tensor stands for; any other as it is."""
    if not torch._is_functional_tensor(tensor):
        return tensor
    torch._sync(tensor)
    return torch._from_functional_tensor(tensor)
