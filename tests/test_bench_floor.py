"""The floors under iterations: whose products, operations and bytes they are."""

from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import floor, gemm
from bench.cnn_peers import CNN
from bench.device import CPU
from bench.peers import REFERENCE
from bench.rnn_peers import PEERS, RNNIteration, Size
from dartsfast.fused.passes import total
from dartsfast.rnn.genotypes import STEPS


def test_products_of_an_iteration_are_those_that_the_reference_takes():
    size = Size(batch=4, nhid=6, bptt=5, vocabulary=11, dropout=False)
    iteration = RNNIteration(PEERS[REFERENCE], size)
    # In a pass for the alphas autograd also takes the words' gradient, in every time step but the first,
    # and there not that of the hidden state nor of node 1, before which there is no alpha.
    one_step = 2 * size.batch * size.nhid * 2 * size.nhid
    for order, alpha_passes in ((1, 1), (2, 2)):
        with FlopCounterMode(display=False) as counter:
            iteration.run(order)
        more = alpha_passes * one_step * (size.bptt - 1 - 2)
        assert gemm.flops(size, order) + more == counter.get_total_flops()


def test_floor_is_the_products_of_an_iteration(monkeypatch):
    run = Counter()

    def mm(a, b, out):
        run[tuple(a.shape), tuple(b.shape)] += 1
        return real(a, b, out=out)

    real = torch.mm
    monkeypatch.setattr(torch, "mm", mm)
    size = Size(batch=4, nhid=6, bptt=5, vocabulary=11)
    for order, alphas, weights in ((1, 1, 1), (2, 2, 3)):
        run.clear()
        gemm.floor(size, order, CPU())["sgemm"]()
        # Words and decoder once a pass, hidden state and nodes once a time step.
        recurrent = 5 * (1 + STEPS)
        both = alphas + weights
        assert run.total() == both + weights + weights + (2 * both + weights) * (recurrent + 1)
        # The decoder's inner features without the three quarters that are dropped.
        assert run[(20, 2), (2, 11)] == run[(20, 11), (11, 2)] == both and run[(2, 20), (20, 11)] == weights
        assert (
            run[(8, 6), (6, 12)] == run[(8, 12), (12, 6)] == 5 * both and run[(6, 8), (8, 12)] == 5 * weights
        )
        flops = sum(2 * rows * inner * columns * n for ((rows, inner), (_, columns)), n in run.items())
        assert flops == gemm.flops(size, order)


def test_the_cnns_floor_is_the_longer_of_operations_and_bytes():
    size, device = CNN.quick, CPU()

    def seconds(flops, bandwidth):
        operations, moved = floor.PRODUCTS * 2 * 1024**3, floor.COPIES * 2 * 4 * 2**26
        ms = {"sgemm": 1e3 * operations / flops, "copy": 1e3 * moved / bandwidth}
        return floor.seconds(size, 1, device, ms)

    runs = [run for p in floor.passes(size, 1, device) for run in p.runs * p.times]
    everything = total(runs)
    operations, moved = everything.operations, everything.read + everything.written
    assert seconds(1e9, 1e30) == pytest.approx(operations / 1e9)
    assert seconds(1e30, 1e9) == pytest.approx(moved / 1e9)
    both = seconds(1e9, 1e9)
    assert max(operations, moved) / 1e9 < both < (operations + moved) / 1e9
