"""Compiled and functionalised programs have eager's bits, in whatever memory operators of ours write."""

from types import SimpleNamespace

import pytest
import torch
from comparisons import same_bits
from op_backends import native_only, needs_kernels
from op_cases import CLASSES, LOCKED, NORMS, PRODUCTS, STEPS, Vectors
from torch.utils._pytree import tree_leaves, tree_map

from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network
from dartsfast.ops.contract import CONTRACTS
from dartsfast.rnn.architect import Architect as RNNArchitect
from dartsfast.rnn.model_search import RNNModelSearch

pytestmark = native_only


def writes(argument):
    return argument.alias_info is not None and argument.alias_info.is_write


WRITING = {
    name: [i for i, a in enumerate(getattr(torch.ops.dartsfast, name).default._schema.arguments) if writes(a)]
    for name in CONTRACTS
}
CALLS = [
    (name, args)
    for case in (*PRODUCTS[:3], *LOCKED[:2], *CLASSES[:3], *NORMS, *STEPS[:2], Vectors(33))
    for name, args in case.calls()
    if WRITING[name]
]


def spoil():
    """Leave NaN in memory that is free: torch's, and that of the extension's large outputs."""
    spoiled = [torch.full((n,), torch.nan) for n in (64, 500, 4000, 30_000) * 8]
    spoiled += [torch.ops.dartsfast.empty(torch.empty(0), [n]).fill_(torch.nan) for n in (80_000, 300_000)]
    del spoiled


def in_slices(name, args):
    """Return ``args`` three times: what is written each time another slice of one memory; and that."""
    wholes = []

    def slices(t):
        whole = torch.stack([t, t + 1, t + 2]).contiguous()
        wholes.append(whole)
        return whole

    args = [tree_map(slices, a) if i in WRITING[name] else a for i, a in enumerate(args)]
    calls = [
        [tree_map(lambda t, k=k: t[k], a) if i in WRITING[name] else a for i, a in enumerate(args)]
        for k in (1, 0, 2)
    ]
    return calls, wholes


def test_every_operator_that_writes_is_called():
    assert {name for name, _ in CALLS} == {name for name, written in WRITING.items() if written}


def compiled(f):
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("transform", [compiled, torch.func.functionalize])
@pytest.mark.parametrize("number", range(len(CALLS)))
def test_slices_of_memory_are_written_in_their_place(transform, number):
    name, args = CALLS[number]
    operator = getattr(torch.ops.dartsfast, name)

    def call(*args):
        out = operator(*args)
        # What was written is read again: a program without writes must look at the new values.
        return out, [t + 1 for i in WRITING[name] for t in tree_leaves(args[i])]

    transformed = transform(call)
    calls, wholes = in_slices(name, args)
    expected_calls, expected = in_slices(name, args)
    for given, wanted in zip(calls, expected_calls, strict=True):
        spoil()
        got, of = transformed(*given), call(*wanted)
        assert same_bits(*([t for t in tree_leaves(r) if t is not None] for r in (got, of)))
        assert same_bits(wholes, expected)


@pytest.mark.parametrize("N", [5, 300])  # of torch's memory, and of that of large outputs
@pytest.mark.parametrize("learn", [False, True])
def test_two_equal_empties_are_two(N, learn):
    """Memory that an operator returned is nobody else's, also where equal calls are merged."""

    def both(a, b):
        first, second = (torch.ops.dartsfast.empty(a, [2, N, N]) for _ in range(2))
        with torch.no_grad():
            for i in range(2):
                torch.ops.dartsfast.gemm_(first[i], a, b, False)
                torch.ops.dartsfast.gemm_(second[i], b, a, False)
                second[i].add_(first[i])
        return first, second, (a * b).sum()

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(N, N, generator=generator).requires_grad_(learn) for _ in range(2))
    f = compiled(both)
    for _ in range(4):
        spoil()
        first, second, loss = f(a, b)
        assert same_bits([first, second, loss], both(a, b))
        first.zero_()
        assert same_bits(second, both(a, b)[1])


@pytest.mark.parametrize(("name", "args"), [c for case in (*NORMS, *PRODUCTS[:2]) for c in case.calls()])
def test_what_an_operator_returns_is_new_memory(name, args):
    operator = getattr(torch.ops.dartsfast, name)
    given = [t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
    out = [
        t.untyped_storage().data_ptr() for t in tree_leaves(operator(*args)) if t is not None and t.numel()
    ]
    assert len(set(out)) == len(out) and not set(out) & set(given)


def cnn_search(transform):
    torch.manual_seed(0)
    model = Network(2, 3, 3, torch.nn.CrossEntropyLoss(), steps=2, multiplier=2, backend="cpu")
    model._loss = transform(model._loss)
    sgd = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9)
    args = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-3, arch_weight_decay=1e-3)
    architect = Architect(model, args)
    for order in (1, 2, 2):
        x, y = torch.randn(2, 2, 3, 8, 8), torch.randint(3, (2, 2))
        spoil()
        architect.step(x[0], y[0], x[1], y[1], 0.025, sgd, unrolled=order == 2)
        sgd.zero_grad()
        model._loss(x[0], y[0]).backward()
        sgd.step()
    return list(model.state_dict().values())


def rnn_search(transform, memory="store"):
    torch.manual_seed(0)
    dry = dict.fromkeys(("dropout", "dropouth", "dropoutx", "dropouti", "dropoute"), 0.0)
    model = RNNModelSearch(20, 6, 6, 6, **dry, backend="cpu", memory=memory)
    model._loss = transform(model._loss)
    sgd = torch.optim.SGD(model.parameters(), 2.0)
    args = SimpleNamespace(wdecay=5e-7, clip=0.25, arch_lr=3e-3, arch_wdecay=1e-3)
    architect, hidden = RNNArchitect(model, args), model.init_hidden(4)
    for order in (1, 2, 2):
        train, valid = torch.randint(20, (2, 4, 4))
        spoil()
        architect.step(hidden, train[:-1], train[1:], hidden, valid[:-1], valid[1:], sgd, order == 2)
        sgd.zero_grad()
        model._loss(hidden, train[:-1], train[1:])[0].backward()
        sgd.step()
    return list(model.state_dict().values())


@needs_kernels
@pytest.mark.parametrize("search", [cnn_search, rnn_search])
def test_a_search_with_compiled_losses_has_eagers_bits(search):
    torch._dynamo.reset()
    got = search(lambda loss: torch.compile(loss, backend="aot_eager"))
    assert same_bits(got, search(lambda loss: loss))
