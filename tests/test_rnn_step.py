"""A node within a time step: the oracle's bits, stock PyTorch's numbers, and what it refuses to write."""

import pytest
import torch
from comparisons import assert_close, same_bits
from op_backends import assert_agrees, native_only, needs_kernels
from op_backends import instruction_set as instruction_set  # fixtures
from op_backends import triton_ran as triton_ran
from op_calls import ORACLES, call
from op_cases import STEPS, Step
from op_sampler import Sampler
from test_ops import stock_rnn_node
from torch.utils._pytree import tree_leaves, tree_map

from dartsfast.errors import InputError
from dartsfast.ops import rnn_node_, rnn_node_backward_
from dartsfast.ops.rnn_node import weight_parts

pytestmark = [needs_kernels, pytest.mark.usefixtures("triton_ran")]
EPSILON = 1e-3


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_float32_agrees_with_the_oracle(case, instruction_set):
    for name, args in case.calls():
        assert_agrees(name, args)


def stock(gates, states, weights, norm, mask, mean):
    """Return what enters the mean or the state, [B, H], and its masked copy, by stock PyTorch."""
    state, _ = stock_rnn_node(gates, states, weights, norm, EPSILON)
    if mean:
        state = torch.cat([states[1:], state[None]]).mean(0)
    return state, state if mask is None else state * mask


@pytest.mark.parametrize("mean", [False, True], ids=["state", "mean"])
@pytest.mark.parametrize("own", [False, True], ids=["given", "own"])
@pytest.mark.parametrize("drop", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("P", "B", "H"), [(1, 5, 3), (4, 70, 18)])
def test_float64_matches_stock_pytorch(P, B, H, drop, own, mean, instruction_set):
    """Gradients by autograd, of what leaves the node in all the ways that it can."""
    sampler = Sampler(torch.float64)
    gates, states, weights = sampler.tensor(P, B, 2 * H), sampler.tensor(P, B, H), sampler.tensor(P, 4)
    mask = sampler.tensor(B, H).relu() if drop else None
    stats = torch.stack([sampler.tensor(H), sampler.tensor(H).square()])
    leaves = [t.clone().requires_grad_() for t in (gates, states, weights)]
    wanted = stock(*leaves, None if own else stats, mask, mean)

    out, masked, average = (torch.full([B, H], torch.nan, dtype=torch.float64) for _ in range(3))
    rnn_node_(out, masked, [average] if mean else [], stats, gates, states, weights, mask, own, EPSILON)
    assert_close([average if mean else out, masked], list(wanted))

    g, through, of_mean = (sampler.tensor(B, H) for _ in range(3))
    before = sampler.tensor(P, B, H)  # what arrives at predecessors from elsewhere
    arriving = [g + of_mean if mean else g, through]
    gradients = torch.autograd.grad(wanted, leaves, arriving)
    d_gates, d_states = torch.full_like(gates, torch.nan), before.clone() if not mean else before * torch.nan
    d_weights = torch.zeros(weight_parts(H), P, 4, dtype=torch.float64)
    rnn_node_backward_(
        d_gates, d_states, d_weights, g, through, of_mean if mean else None, out, stats[1], gates, states,
        weights, mask, EPSILON, own, not mean,
    )  # fmt: skip
    found = [d_gates, d_states if mean else d_states - before, d_weights.sum(0)]
    assert_close(found, list(gradients))


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_everything_is_written(case, instruction_set):
    """But for what is added to, no result shows what was in memory."""
    for name, args in case.calls():
        args = list(args)
        written = range(3) if name == "rnn_node_" else range(1 if args[-1] else 2)
        for i in written:
            args[i] = tree_map(lambda t: t * torch.nan, args[i])
        if name == "rnn_node_" and args[-2]:
            args[3] = args[3] * torch.nan  # statistics that are the batch's own
        assert_agrees(name, args)


@native_only
@pytest.mark.parametrize("case", STEPS, ids=str)
def test_same_bits_for_any_threads(case):
    before = torch.get_num_threads()
    for name, args in case.calls():
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(call(name, args))
        assert all(same_bits(result, results[0]) for result in results[1:]), name
    torch.set_num_threads(before)


@native_only
def test_the_gradient_of_the_weights_is_added_to_in_one_part_alone():
    for name, args in Step(3, 5, 21).calls()[3:]:
        before = args[2].clone()
        getattr(torch.ops.dartsfast, name)(*args)
        assert torch.equal(args[2][1:], before[1:]) and not torch.equal(args[2][0], before[0])


def changed(args, **places):
    """Return ``args`` with others in the places that a keyword's number names."""
    return [places.get(f"_{i}", a) for i, a in enumerate(args)]


def refused(name, args, match):
    with pytest.raises((RuntimeError, InputError), match=match):
        getattr(torch.ops.dartsfast, name)(*args)


def test_bad_arguments_are_refused():
    forward, backward = Step(3, 5, 8).calls()[1][1], Step(3, 5, 8).calls()[3][1]
    wide = torch.ones(5, 16)
    for args, match in (
        (changed(forward, _0=wide[:, ::2]), "out must be contiguous"),
        (changed(forward, _1=torch.ones(5, 7)), r"masked must be \[5, 8\]"),
        (changed(forward, _2=[torch.ones(5, 8)] * 2), "mean must hold one tensor or none, got 2"),
        (changed(forward, _3=torch.ones(3, 8)), r"stats must be \[2, 8\]"),
        (changed(forward, _7=torch.ones(1, 8)), r"mask must be \[5, 8\]"),
    ):
        refused("rnn_node_", args, match)
    for args, match in (
        (changed(backward, _0=torch.ones(3, 8, 16).transpose(0, 1)[:, :5]), "d_gates must be"),
        (changed(backward, _2=torch.ones(2, 4, 3).mT), "d_weights must"),
        (changed(backward, _4=torch.ones(8)), r"through must be \[5, 8\]"),
        (changed(backward, _14=True), "d_states are added to, or hold shares of of_mean: not both"),
    ):
        refused("rnn_node_backward_", args, match)


@native_only
def test_what_is_written_overlaps_with_nothing():
    forward, backward = Step(3, 5, 8).calls()[1][1], Step(3, 5, 8).calls()[3][1]
    states, gates = forward[5], backward[8]
    for args, match in (
        (changed(forward, _0=states[1]), "out must not overlap"),
        (changed(forward, _1=forward[0]), "masked must not overlap"),
        (changed(forward, _2=[forward[1]]), "mean must not overlap"),
    ):
        refused("rnn_node_", args, match)
    refused("rnn_node_backward_", changed(backward, _0=gates), "d_gates must not overlap")
    refused("rnn_node_backward_", changed(backward, _1=backward[3].expand(3, 5, 8)), "d_states must")


def test_there_is_no_derivative():
    for name, args in (Step(2, 3, 4).calls()[0], Step(2, 3, 4).calls()[3]):
        given = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]
        refused(name, given, "has no derivative")


def test_the_oracle_leaves_its_arguments_alone():
    for name, args in Step(2, 3, 4).calls():
        before = [t.clone() for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
        ORACLES[name](*args)
        assert same_bits([t for t in tree_leaves(args) if isinstance(t, torch.Tensor)], before), name
