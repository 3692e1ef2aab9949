"""P-DARTS: dropout and stages against their definitions, few skip connections, a search that is stopped."""

import copy
import math
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from op_backends import needs_kernels

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from small_runs import begun, cnn_options, same, stopped_and_resumed
from test_methods import DARTS, batches, forward, gap, started

from dartsfast.cnn.genotypes import PRIMITIVES
from dartsfast.cnn.spaces import SPACES, Space
from dartsfast.errors import InputError, RunStopped
from dartsfast.methods.p_darts import limited, narrowed
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.runs.record import read_run
from dartsfast.search import CNNConfig, search_cnn
from dartsfast.search.cnn import CNNSearch


def dropping(rate):
    def edge(operations, x, row):
        total = 0
        for w, op, name in zip(row, operations._ops, PRIMITIVES, strict=True):
            dropped = name == "skip_connect" and operations.stride == 1
            found = x * torch.empty_like(x).bernoulli_(1 - rate) / (1 - rate) if dropped else op(x)
            total = total + w * found
        return total

    return edge


def test_dropout_of_skip_connections_against_plain_torch(tmp_path):
    search = started(
        tmp_path, "p-darts", pdarts_rates="0.5,0,0", epochs=30, warmup_epochs=4, backend="reference"
    )
    for epoch, rate in ((1, 0.5 * 8 / 10), (6, 0.5 * math.exp(-0.4))):
        search.model.begin_epoch(epoch, 10)
        search.epoch = epoch
        twin, (x, y, xv, yv) = copy.deepcopy(search.model), batches(1)[0]
        torch.manual_seed(5)
        logits, loss = search.iteration(x, y, xv, yv)
        torch.manual_seed(5)
        if epoch >= 4:
            before, plain = list(twin.arch_parameters()), DARTS()
            found = F.cross_entropy(forward(twin, xv, plain.rows(twin), dropping(rate)), yv)
            for alpha, gradient in zip(before, torch.autograd.grad(found, before), strict=True):
                with torch.no_grad():  # the first step of Adam, by hand
                    gradient = gradient + 1e-3 * alpha
                    alpha -= 3e-4 * gradient / (gradient.abs() + 1e-8)
        wanted = forward(twin, x, DARTS().rows(twin), dropping(rate))
        assert gap(logits, wanted) < 1e-9 and abs(loss - F.cross_entropy(wanted, y)) < 1e-9
        for ours, theirs in zip(search.model.arch_parameters(), twin.arch_parameters(), strict=True):
            assert gap(ours, theirs) < 1e-9


@needs_kernels
def test_kernels_compute_beside_dropout(tmp_path):
    search = started(tmp_path, "p-darts", pdarts_rates="0.5,0,0", epochs=30, backend="cpu")
    model, (x, *_) = search.model.eval(), batches(1)[0]
    twin = copy.deepcopy(model)
    for part in (twin, *twin.cells):
        part._backend = "reference"
    assert gap(model(x), twin(x)) < 1e-10
    assert {p.p for p in model.modules() if isinstance(p, torch.nn.Dropout)} == {0.5}


def test_operations_of_the_largest_alphas_go_on():
    torch.manual_seed(0)
    alphas = [torch.randn(14, 8) for _ in range(2)]
    space = narrowed(alphas, Space(*[[list(PRIMITIVES)] * 14] * 2), 5)
    for table, rows in zip(alphas, space, strict=True):
        for weights, row in zip(table, rows, strict=True):
            least = sorted(range(8), key=lambda k: weights[k].item())[:3]
            assert row == [name for k, name in enumerate(PRIMITIVES) if k not in least]


def test_few_skip_connections():
    """Of three the weakest gives way: to the other operation of its edge, or to another edge."""
    space = [["none", "skip_connect", "sep_conv_3x3"]] * 14
    rows = np.full((14, 3), [0.5, 0.2, 0.3])
    rows[0, 1], rows[1, 1], rows[4, 1] = 0.6, 0.7, 0.45
    names = [name for name, _ in limited(rows, space, 8)]
    assert names.count("skip_connect") == 3
    assert limited(rows, space, 3)[:4] == [
        ("skip_connect", 1), ("skip_connect", 0), ("skip_connect", 2), ("sep_conv_3x3", 0),
    ]  # fmt: skip
    assert limited(rows, space, 2)[2:4] == [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]
    assert limited(rows, space, 1)[:2] == [("skip_connect", 1), ("sep_conv_3x3", 0)]
    only = [["none", "skip_connect"]] * 14
    assert len(limited(rows[:, :2], only, 2)) == 8  # where there is nothing else, they stay


def options(tmp_path, **others):
    given = {**cnn_options(tmp_path), "method": "p-darts", "layers": 1, "epochs": 3}
    return {**given, "backend": "reference", "max_images": 3, **others}


def test_a_search_goes_through_stages_and_on_to_the_same_bits(tmp_path, undrawn, monkeypatch, capsys):
    given, whole, parts = options(tmp_path), tmp_path / "whole", tmp_path / "parts"
    result = search_cnn(CNNConfig(**given, out=str(whole)))
    assert "stage 2: 7 cells, 5 operations an edge" in capsys.readouterr().out.replace("\n", " ")
    state = load_checkpoint(whole, "cnn")
    assert (
        state["extra"]["stage"] == 2
        and len({name.split(".")[1] for name in state["model"] if "cells" in name}) == 13
    )
    assert result.alphas["alphas_normal"].shape == (14, 3)
    assert [row["lr"] for row in result.history] == [0.025] * 3
    assert [name for name, _ in result.genotype.normal].count("skip_connect") <= 2
    record = read_run(whole)
    assert not record.problems
    names = {kind: record.notes[1]["alphas"][f"alphas_{kind}"] for kind in ("normal", "reduce")}
    for kind in ("normal", "reduce"):  # what the last stage chooses among was among the best of the first
        best = torch.tensor(names[kind]["weights"]).topk(5).indices
        allowed = [{names[kind]["operations"][k] for k in row} for row in best.tolist()]
        rows = state["extra"]["space"][kind == "reduce"]
        assert all(set(row) < among for row, among in zip(rows, allowed, strict=True))
    validate = CNNSearch._validate

    def stopping(search):
        found = validate(search)
        if search.epoch == 0:  # after the checkpoint between two stages
            signal.raise_signal(signal.SIGTERM)
        return found

    with monkeypatch.context() as patched, pytest.raises(RunStopped):
        patched.setattr(CNNSearch, "_validate", stopping)
        search_cnn(CNNConfig(**given, out=str(parts)))
    assert load_checkpoint(parts, "cnn")["extra"]["stage"] == 0
    to_stage = CNNSearch._to_stage

    def building(search, stage, space):
        to_stage(search, stage, space)
        if stage == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(RunStopped, match="in epoch 3, iteration 0; the ch"):
        patched.setattr(CNNSearch, "_to_stage", building)
        search_cnn(CNNConfig(), resume=parts)
    assert load_checkpoint(parts, "cnn")["extra"]["stage"] == 1
    assert search_cnn(CNNConfig(), resume=parts).genotype == result.genotype
    same(state, load_checkpoint(parts, "cnn"))
    stopped_and_resumed(given, tmp_path / "more", [(1, 0)])
    same(state, load_checkpoint(tmp_path / "more", "cnn"))
    again = search_cnn(CNNConfig(), resume=whole)
    assert again.genotype == result.genotype
    assert all(torch.equal(again.alphas[name], alpha) for name, alpha in result.alphas.items())


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("stage", 1, "extra.stage is 1 after 0 epochs"),
        ("stage", 3, "extra.stage is 3"),
        ("space", [[["none"] * 8] * 13] * 2, r"extra.space\[0\] has 13 entries"),
    ],
)
def test_a_stage_that_cannot_be(tmp_path, name, value, message):
    search = CNNSearch(CNNConfig(**options(tmp_path)))
    state = begun(search, 1)
    state["extra"][name] = value
    with pytest.raises(InputError, match=message):
        search.take_form(state)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"pdarts_rates": "0,0,1"}, "pdarts_rates must be the rates of three stages"),
        ({"pdarts_rates": "0,0"}, "pdarts_rates must be the rates of three stages"),
        ({"epochs": 50}, "three equal stages"),
        ({"space": "s2"}, "cannot have --space s2"),
        ({"stop": "skips=2"}, "cannot have --stop skips=2"),
        ({"warmup_epochs": 25}, "in 25 of 25 epochs"),
        ({"order": 2}, "--preset paper"),
        ({"method": "darts", "pdarts_skips": 3}, "pdarts_skips is of --method p-darts"),
    ],
)
def test_options_that_cannot_work(given, message):
    with pytest.raises(InputError, match=message):
        CNNConfig(**{"method": "p-darts", "epochs": 75, **given}).check()


def test_the_first_stage_has_the_space_darts(tmp_path):
    model = CNNSearch(CNNConfig(**options(tmp_path))).model
    assert model._space.normal == [list(SPACES["darts"].normal)] * 14
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]  # of rate 0


def test_what_is_dropped_out(tmp_path):
    model = CNNSearch(CNNConfig(**options(tmp_path, pdarts_rates="0.5,0,0"))).model
    for cell in model.cells:
        for edge in cell._ops:
            found = [any(isinstance(part, torch.nn.Dropout) for part in op.modules()) for op in edge._ops]
            assert found == [name == "skip_connect" and edge.stride == 1 for name in PRIMITIVES]


def test_a_stage_begins_with_the_same_weights_in_every_process(tmp_path):
    search, found = CNNSearch(CNNConfig(**options(tmp_path))), []
    space = Space(*[[list(PRIMITIVES[:5])] * 14] * 2)
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        search._to_stage(1, space)
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append(search.model.state_dict())
    same(*found)
