"""The Triton kernels of a node within a time step: one launch each, whatever is made of it."""

import pytest
import torch
from comparisons import assert_close
from interpreted import moved, needs_triton, run, watch
from op_calls import ORACLES
from op_cases import STEPS, Step

pytest.importorskip("triton")
pytestmark = [needs_triton, pytest.mark.usefixtures("poisoned")]
FEW = (*STEPS[:2], Step(2, 33, 6))


@pytest.mark.parametrize("case", FEW, ids=str)
def test_float64_matches_the_oracle(case, exact):
    for name, args in case.calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


@pytest.mark.parametrize("rows", [4, 32])
def test_every_number_of_row_tiles(rows, monkeypatch):
    from dartsfast.kernels import rnn_node

    monkeypatch.setattr(rnn_node, "ROWS", rows)
    for name, args in Step(3, 35, 3).calls(torch.float64):
        assert_close(run(name, args), ORACLES[name](*args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_what_is_stored(dtype, exact):
    """The masked copy is made of what was stored: the backward makes it again, of that."""
    for name, args in Step(3, 5, 21).calls():
        args = moved(args, "cpu", dtype)
        wanted = ORACLES[name](*moved(args, "cpu", torch.float64))
        if name == "rnn_node_":  # where the batch's statistics are not stored in half precision
            args, wanted = (*args[:3], args[3].float(), *args[4:]), (*wanted[:2], wanted[2], wanted[3])
        else:
            args = (*args[:2], args[2].float(), *args[3:])
        found = run(name, args)
        for got, exactly in zip(flat(found), flat(wanted), strict=True):
            bound = 2 * torch.finfo(dtype).eps * exactly.abs().max().clamp_min(1)
            assert ((got.double() - exactly).abs() <= bound).all(), name
        if name == "rnn_node_":
            made = found[2][0] if found[2] else found[0]
            mask = torch.ones_like(made) if args[7] is None else args[7]
            assert torch.equal(found[1], (made.float() * mask.float()).to(dtype))


def flat(found):
    return [t for each in found for t in (each if isinstance(each, list | tuple) else [each])]


def test_launches(monkeypatch):
    from dartsfast.kernels import reduce, rnn_node

    launches = watch(monkeypatch, rnn_node, reduce)
    for name, args in Step(3, 5, 7, "transposed").calls():
        run(name, args)
    assert [launch[:2] for launch in launches] == [
        *[("rnn_node_kernel", (2,))] * 3,
        *[("rnn_node_backward_kernel", (2, 3))] * 3,
    ]
