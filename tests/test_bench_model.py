"""The estimate for GPUs: what is counted, by hand where that is possible, and against figures of old."""

import importlib
import pkgutil
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from dartsfast.kernels import fd_hvp, reduce

from bench import counting, model
from bench.cnn_peers import CNN, Size
from bench.costs import OPERATIONS, ROUNDS, Launch, extent, kernel_launch, touched
from bench.counting import META, kept_bytes, pretending
from bench.peers import REFERENCE
from bench.rnn_peers import RNN
from dartsfast import kernels
from dartsfast.explain import explain_cnn, print_explanation
from dartsfast.search.config import CNNConfig

QUICK = Size(batch=2, C=4, layers=1, image=8)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=META)


def counted(call):
    with counting.counting() as launches:
        call()
    return launches


def test_the_reference_is_counted_as_it_was_by_another_hand():
    with pretending():
        with META:
            iteration = CNN.iteration(CNN.peers[REFERENCE], CNN.size, device=META)
        losses = []
        forward = counted(lambda: losses.append(iteration.train_loss()))
        backward = counted(losses[0].backward)
    for launches, number, gigabytes in ((forward, 6235, 27.9), (backward, 7375, 46.7)):
        assert len(launches) == pytest.approx(number, rel=0.01)
        assert sum(one.bytes for one in launches) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_kernels_of_a_tiny_network():
    launches, kept = model.count(CNN, "triton store", 1, QUICK)
    names = Counter(one.name for one in launches if one.triton)
    # A forward: the stem and both preprocessings; of the inputs together, and of every node that is read, the
    # first and the second stages of all edges; of the inputs the halves of reductions.
    assert names["grouped_conv_kernel"] == 2 * (1 + 1 + 4 + 4 + 1) + 1  # the stem again
    first, second, halves = 4 + 3, 4, 4 * 2  # backward node by node, of which the first reads no other
    # The backward of a stage is a launch; of edges that reduce one by input and one by weights. That of the
    # alphas ends at what reads the inputs, and the first node reads nothing else.
    assert names["grouped_stage_backward_kernel"] == (first + 4 + second) + (3 + 3)
    assert names["grouped_pointwise_gradient_kernel"] == 1 + 1 + halves
    assert names["grouped_weight_sums_kernel"] == 2  # the cell's and the stem's
    assert names["alpha_softmax_kernel"] == names["alpha_softmax_backward_kernel"] == 2
    assert not any(name.startswith("fd_") for name in names)
    less = model.count(CNN, "triton recompute", 1, QUICK)
    assert less[1] < kept and len(less[0]) > len(launches)
    half = model.count(CNN, "triton store bf16", 1, QUICK)
    assert half[1] < kept and sum(x.bytes for x in half[0]) < sum(x.bytes for x in launches)


@pytest.mark.parametrize(
    ("peer", "order", "launched", "gigabytes"),
    [("triton store", 1, 1500, 24), ("triton store bf16", 1, 1500, 16), ("triton store", 2, 4500, 65)],
)
def test_the_published_search_stays_within_its_launches_and_bytes(peer, order, launched, gigabytes):
    launches, _ = model.count(CNN, peer, order, CNN.size)
    assert len(launches) <= launched and sum(one.bytes for one in launches) <= gigabytes * 1e9


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_launches_are_those_that_are_explained(capsys, kept):
    peer = "triton store" if kept == "float32" else "triton store bf16"
    found = [one for one in model.count(CNN, peer, 2, QUICK)[0] if one.name.startswith("grouped")]
    config = CNNConfig(
        backend="triton", order=2, storage_dtype=kept,
        batch_size=QUICK.batch, init_channels=QUICK.C, layers=QUICK.layers, image_size=QUICK.image,
    )  # fmt: skip
    passes = explain_cnn(config)
    works = [work for p in passes for run in p.runs for work in run.works * p.times]
    assert Counter(one.name for one in found) == Counter(work.kernel.__name__ for work in works)
    assert sum(one.bytes for one in found) == sum(work.bytes for work in works)
    pytest.importorskip("rich")
    print_explanation(passes)
    text = capsys.readouterr().out
    last = text.splitlines()[-2]
    assert f" {len(works):,} " in last and f" {sum(work.bytes for work in works) / 1e6:,.1f} " in last
    assert "launches" in text and "sections" not in text


def test_second_order_has_the_vector_kernels_once_each_over_all_weights():
    launches, _ = model.count(CNN, "triton store", 2, QUICK)
    found = {one.name: one for one in launches}
    with META:
        weights = list(CNN.iteration(CNN.peers[REFERENCE], QUICK, device=META).model.parameters())
    line = 16  # elements, on which every weight begins
    n = sum(-(-w.numel() // line) * line for w in weights)
    assert found["fd_virtual_step_kernel"].bytes == 4 * (4 * n + 1)  # w twice, g, momentum, and the factor
    assert found["fd_perturb_kernel"].bytes == 4 * (3 * n + 1)
    assert Counter(one.name for one in launches)["fd_perturb_kernel"] == 2


def test_the_recurrent_network():
    """GEMMs by hand, and the design's figures: 5.6 GB kept by the reference, under 1 GB fused."""
    quick = RNN.quick
    launches, _ = model.count(RNN, "triton store", 1, quick)
    names = Counter(one.name for one in launches if one.triton)
    assert names["rnn_node_kernel"] == 2 * 9 * quick.bptt == names["rnn_node_backward_kernel"]
    rows, H = quick.bptt * quick.batch, quick.nhid
    recurrent = 2 * rows * (2 * H * 2 * H + 36 * H * 2 * H)  # 36 edges beside the initial state
    decoder = 2 * rows * H * quick.vocabulary
    # Two forwards, a backward of the alphas and one of everything, less d_x of words without a gradient.
    words = 2 * rows * H * 2 * H
    names = "gemm_", "_linear_cross_entropy_batch_chunked"
    gemms = sum(one.operations for one in launches if one.name in names)
    assert gemms == pytest.approx(5 * (recurrent + decoder) - words, rel=0.005)
    kept = {peer: model.count(RNN, peer, 1, RNN.size)[1] for peer in (REFERENCE, "triton store")}
    assert kept[REFERENCE] == pytest.approx(5.6e9, rel=0.02) and kept["triton store"] < 1e9


def test_a_time_step_launches_nodes_and_products_and_nothing_else():
    def launches(bptt):
        found, _ = model.count(RNN, "triton store", 1, replace(RNN.quick, bptt=bptt))
        return Counter(one.name for one in found)

    few, more = launches(2), launches(3)
    more.subtract(few)
    # Two forwards and two backwards: a product a node and one of the state before; the weight step's backward
    # has those of the weights too, one of them for the words, whose gradients it has as well, and the masked
    # copies that these read, in two launches.
    products = 2 * 9 + 2 * 9 + (8 + 2 + 1)
    step = Counter(rnn_node_kernel=2 * 9, rnn_node_backward_kernel=2 * 9, gemm_=products, mul=2)
    assert {name: count for name, count in more.items() if count} == step
    # The published search has 35 time steps: an iteration of it was 7,821 launches once.
    assert sum(few.values()) + 33 * sum(step.values()) <= 3150


def test_bytes_and_operations_of_launches_by_hand():
    w, w0, v, norm = meta(1000), meta(1000), meta(1000), meta()
    (one,) = counted(lambda: fd_hvp.fd_perturb_(None, w, w0, v, norm, 0.01, 1.0))
    assert one == Launch("fd_perturb_kernel", 4 * (3 * 1000 + 1), 2 * 1000, True, arguments=9)
    (one,) = counted(lambda: reduce.ordered_sum(meta(7, 3, 5), meta(3, 5)))
    # Five arguments and four constants; one block of parts.
    assert one == Launch("sum_kernel", 4 * (7 * 15 + 15), 7 * 15, True, rounds=1, arguments=9)


def test_rounds_by_hand():
    (one,) = counted(lambda: reduce.ordered_sum(meta(3 * reduce.PARTS + 1, 5), meta(5)))
    assert one.rounds == 4
    # Of the paper's first cells: 65,536 pixels in tiles of 64, gone through twice.
    (one,) = counted(lambda: reduce.moments(meta(1024, 4, 2, 16), 65_536, 64, meta(4, 2, 16)))
    assert one.name == "moments_kernel" and one.rounds == 2 * 1024 // reduce.PARTS == 32
    card = model.CARDS["H100 SXM"]
    assert 10e-6 < model.launch_seconds(one, card) < 16e-6  # by its bytes alone it would be 2.2


def test_a_node_of_the_rnn_goes_through_its_predecessors_one_by_one():
    launches, _ = model.count(RNN, "triton store", 1, RNN.quick)
    rounds = {one.rounds for one in launches if one.name == "rnn_node_kernel"}
    assert rounds == {p + 1 for p in range(1, 9)}  # the predecessors, then the node is read again
    assert {one.rounds for one in launches if one.name == "rnn_node_backward_kernel"} == {2}


def test_all_kernels_that_loop_over_what_is_in_memory_have_rounds():
    """Loops over constants are unrolled or short; those over sizes are trips to memory one after another."""
    loops = re.compile(r"for \w+ in range\((?:0|begin|split \* span|tl\.program_id\(0\) \* BP), ")
    found = set()
    for module in pkgutil.iter_modules(kernels.__path__):
        names = vars(importlib.import_module(f"dartsfast.kernels.{module.name}"))
        for name, kernel in names.items():
            if hasattr(kernel, "arg_names") and loops.search(kernel.src):
                found.add(name)
    # A tile's products go through blocks of channels, of which there are one or two, and norms likewise.
    few = {"forward_tile", "pointwise_adjoint", "add_products", "norm_stats_kernel"}
    inner = {"pointwise_gradient", "add_adjoint", "leave", "depthwise_gradient", "combined", "added"}
    grouped = {name for name in found if name.startswith("grouped_")}
    assert found - few - inner - grouped <= set(ROUNDS)
    # Which call such a loop.
    calling = {"pointwise_gradient_kernel", "weight_sums_kernel", "moments_kernel", "sum_kernel"}
    assert set(ROUNDS) - found == calling
    launches, _ = model.count(CNN, "triton store", 1, QUICK)
    assert grouped | {f"grouped_{name}_kernel" for name in ("pointwise_gradient", "weight_sums")} <= {
        one.name for one in launches if one.rounds
    }


def test_iterations_of_the_paper_s_network_are_few_launches():
    """10,347 and 49 GB when every operator of an edge was a launch or more of its own."""
    bounds = ("", 1, 1100, 24), ("", 2, 2750, 61.5), (" bf16", 1, 1100, 17)
    for storage, order, most, gigabytes in bounds:
        launches, _ = model.count(CNN, f"triton store{storage}", order, CNN.size)
        assert len(launches) <= most
        assert sum(one.bytes for one in launches) <= gigabytes * 1e9


def test_a_convolution_by_hand():
    from dartsfast.kernels.branch_conv import branch_conv, tile

    x, depthwise, pointwise = meta(2, 8, 8, 4), meta(4, 1, 3, 3), meta(80, 4, 1, 1)
    out = meta(1, 2, 8, 8, 80, dtype=torch.bfloat16), meta(1, 2, 80)
    conv, moments = counted(lambda: branch_conv(out, x, None, [depthwise], [pointwise], [1], 1, True))
    pixels, tiles = 128, 128 // tile(4, 80, taps=True)["BP"]
    assert conv.name == "branch_conv_kernel" and moments.name == "moments_kernel"
    # two blocks of output channels: the depthwise output is computed twice
    assert conv.operations == 2 * pixels * 4 * 80 + 2 * (2 * pixels * 4 * 9)
    parts = 4 * tiles * 2 * 80
    assert conv.bytes == 4 * (pixels * 4 + 4 * 9 + 80 * 4) + 2 * pixels * 80 + parts
    assert moments.bytes == parts + 4 * 2 * 80


def test_an_input_gradient_reads_dt_instead_of_what_dt_was_made_of():
    from dartsfast.kernels.branch_conv_backward import branch_conv_backward

    image, weights = (2, 8, 8, 4), ([meta(4, 1, 3, 3)], [meta(4, 4, 1, 1)])
    given = [meta(*image)], [meta(*image)], meta(1, 4, 4), meta(*image), None, *weights, [1], 1, True
    out = meta(*image), [], [], meta(0, 4)
    adjoint, gradient = counted(lambda: branch_conv_backward(out, *given, None, True, False))
    pixels = 128
    # g, z and dt; then dt, x and dx
    assert adjoint.bytes == 4 * (3 * pixels * 4 + 4 * 4 + 4 * 4)
    assert gradient.bytes == 4 * (3 * pixels * 4 + 4 * 9)


def test_what_a_launch_touches_counts_once():
    x, y = meta(4, 6), meta(6)
    assert extent(y.expand(4, 6)) == 4 * 6 and extent(x[:, 1:]) == 4 * 4 * 5 and extent(meta(0, 3)) == 0
    assert touched({"a": (x, (x, y)), "b": x, "c": None, "n": 3}) == 4 * (24 + 6)
    assert touched({"a": x, "b": y}, again=("b",)) == 4 * (24 + 2 * 6)


def test_stock_operators_by_hand():
    x, y, z = meta(4, 6), meta(6), meta(4, 6)
    a, b, c = meta(5, 7), meta(7, 3), meta(2, 8, 10, 10)

    def run():
        x.view(24).detach()[3:]  # views
        v = torch.empty_like(x)
        v.transpose_(0, 1).detach_().unsqueeze_(0).squeeze_(0).t_().as_strided_([3], [1])  # views in place
        v.swapaxes_(0, 0)
        torch.empty_like(x)
        x + y
        x.add_(y)
        z.copy_(x)
        z.zero_()
        torch.cat([x, x], out=meta(8, 6))
        a @ b
        torch.conv2d(c, meta(8, 1, 3, 3), groups=8)

    found = [(one.name, one.bytes // 4, one.operations) for one in counted(run)]
    assert found == [
        ("add", 24 + 6 + 24, 24),
        ("add_", 24 + 6 + 24, 24),
        ("copy_", 24 + 24, 24),
        ("zero_", 24, 24),
        ("cat", 48 + 48, 48),
        ("mm", 35 + 21 + 15, 2 * 5 * 7 * 3),
        ("convolution", 2 * 8 * 100 + 72 + 2 * 8 * 64, 2 * (2 * 8 * 64) * 9),
    ]


def test_kept_is_every_storage_once_without_parameters():
    w, x = meta(6).requires_grad_(), meta(4, 6)
    # exp keeps its result, the first product w and x, the second the same result again
    found = kept_bytes(lambda: ((w * x).exp() * x).sum(), [w])
    assert found == 4 * (24 + 24)


def test_every_kernel_has_a_formula_and_others_raise():
    found = set()
    for module in pkgutil.iter_modules(kernels.__path__):
        names = vars(importlib.import_module(f"dartsfast.kernels.{module.name}"))
        found |= {n for n, kernel in names.items() if n.endswith("_kernel") and hasattr(kernel, "arg_names")}
    grouped = {name for name in found if name.startswith("grouped_")}  # know their costs
    assert grouped and found - grouped == set(OPERATIONS)
    with pytest.raises(LookupError, match="of the kernel new_kernel: add a formula to bench/costs.py"):
        kernel_launch("new_kernel", {}, (1,))


def test_seconds_are_the_slower_of_bytes_and_operations_and_a_launch():
    card = model.Card(bandwidth=1e9, rate=1e12)
    launches = [Launch("a", 4_000, 1_000, False), Launch("b", 1_000, 9_000_000, True)]
    assert model.device_seconds(launches, card) == pytest.approx(4e-6 + 9e-6 + 2 * 2e-6)
    assert model.eager_seconds(launches[:1] * 10, card) == pytest.approx(60e-6)
    assert model.eager_seconds([Launch("a", 0, 0, False)], card) == pytest.approx(6e-6)
    slow = Launch("a", 10**9, 0, False)
    assert model.eager_seconds([slow], card) == pytest.approx(1 + 2e-6)


def test_the_host_takes_longer_for_a_kernel_and_for_each_of_its_arguments():
    few, many = (Launch("a", 0, 0, True, arguments=n) for n in (10, 60))
    apart = model.host_seconds(many) - model.host_seconds(few)
    assert apart == pytest.approx(50 * model.ARGUMENT_SECONDS)
    assert 40e-6 < model.host_seconds(few) < model.host_seconds(many) < 200e-6


def test_the_tables_say_that_they_are_estimates():
    launches = [Launch("a_kernel", 3_000, 0, True), Launch("add", 10**9, 0, False)]
    row = {"network": "cnn", "peer": "triton store", "order": 2, **model._sums(launches), "kept_gb": 1.5}
    row |= {f"eager_ms {card}": 7.0 for card in model.CARDS}
    cards = {name: vars(card) for name, card in model.CARDS.items()}
    assumed = dict.fromkeys(("graph_us", "round_us", "stock_us", "kernel_us", "argument_us"), 2.0)
    sizes = {"cnn": vars(CNN.size), "rnn": vars(RNN.size), **assumed, "cards": cards}
    result = {"conditions": sizes, "rows": [row, *model.by_kernel("cnn", launches)]}
    text = model.table(result)
    assert "| cnn | 2 | triton store | 2 (1) | 1.0 | 0 | 1.50 | 0 (7) | 0 (7) | 3 (7) |" in text
    assert "| cnn | a_kernel | 1 | 3e-06 | 0 | 0.002" in text and "| cnn | stock operators | 1 | 1 |" in text
    assert model.conditions(result).startswith("an ESTIMATE from counts, nothing ran on a GPU")
