"""Accumulation with the statistics of the whole batch: a plan within the memory of a part of it."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from small_runs import OPTIONS, begun, same
from test_accumulate import DECAY, XI, batch, by_hand, summed
from torch import nn

from dartsfast.backends import availability, pretending
from dartsfast.cli import main
from dartsfast.cnn.accumulate import backward
from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
from dartsfast.fused.passes import iteration
from dartsfast.methods import new_network
from dartsfast.runs.checkpoint import save_checkpoint
from dartsfast.runs.fit import restored_config
from dartsfast.search import CNNConfig, search_cnn
from dartsfast.search.cnn import CNNSearch

cpu = availability("cpu")
needs_cpu = pytest.mark.skipif(not cpu.available, reason=cpu.reason)
IMAGES = (64, 3, 8, 8)


def network(backend="cpu", dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    with torch.device(device), pretending(backend):
        model = Network(2, 4, 3, nn.CrossEntropyLoss(), backend=backend).to(dtype)
    with torch.no_grad():
        for alpha in model.arch_parameters():
            alpha.copy_(torch.randn(alpha.shape))
    return model


def stored(images, order, backend="cpu", dtype=torch.float64):
    """Return the peak of an iteration over ``images`` that stores all."""
    model = network(backend, dtype, "meta")
    with pretending(backend):
        return max(p.peak + p.beside for p in iteration(model, images, order))


@needs_cpu
@pytest.mark.parametrize("order", [1, 2])
def test_gradients_are_those_of_the_whole_batch_in_the_memory_of_a_part(order):
    args = SimpleNamespace(momentum=0.9, weight_decay=DECAY, arch_learning_rate=1e-3, arch_weight_decay=0)
    train, valid = batch(64, 1), batch(64, 2)
    model = network()
    fit = model.fit_to_part(IMAGES, 4, order)
    assert fit.peak <= stored((16, *IMAGES[1:]), order) and set(fit.modes) != {"store"}
    leaves = [*model.parameters(), *model.arch_parameters()]
    backward(model, *train, 1)
    found = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    sgd = torch.optim.SGD(model.parameters(), XI, momentum=0.9, weight_decay=DECAY)
    Architect(model, args).step(*train, *valid, XI, sgd, unrolled=order == 2)
    found += [alpha.grad for alpha in model.arch_parameters()]
    stock = network("reference")
    wanted = [*summed(stock, *train, [64]), *by_hand(network("reference"), train, valid, [64], order)]
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9 * max(1, theirs.abs().max()))


def test_the_plan_is_the_fastest_within_the_memory_of_a_part():
    part, budgeted = (network("cuda", torch.float32, "meta") for _ in range(2))
    budget = stored((32, *IMAGES[1:]), 1, "cuda", torch.float32)
    budgeted._memory = f"{budget}B"
    with pretending("cuda"):
        found = part.fit_to_part(IMAGES, 2)
        assert found == budgeted.fit_memory(IMAGES)
    assert found.peak <= budget and found.price > 1.0
    assert [cell._memory for cell in part.cells] == list(found.modes)


@needs_cpu
def test_too_many_parts_say_how_many_would_do():
    model = network(dtype=torch.float32)
    with pytest.raises(InputError, match="accumulate 64 is too much: passes over images .* take") as caught:
        model.fit_to_part(IMAGES, 64)
    assert "--accumulate_statistics part" in str(caught.value)
    most = int(re.search(r"Choose (\d+) at most", str(caught.value))[1])
    assert model.fit_to_part(IMAGES, most).peak <= stored((64 // most, *IMAGES[1:]), 1, dtype=torch.float32)
    peaks = [stored((64 // k, *IMAGES[1:]), 1, dtype=torch.float32) for k in (most, 2 * most)]
    assert peaks[0] >= model._fits[0].least > peaks[1]
    with pytest.raises(InputError, match="must divide the batch, 64 images, into equal parts, got 3"):
        model.fit_to_part(IMAGES, 3)
    small = Network(2, 4, 1, nn.CrossEntropyLoss(), 1, 1, backend="cpu")
    with pytest.raises(InputError, match=r"all stored\. Leave it out, or"):
        small.fit_to_part((2, 3, 8, 8), 2)


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(InputError, match="the reference path has none: choose one of store, recompute, cell"):
        network("reference").fit_to_part(IMAGES, 2)
    model = new_network(CNNConfig(memory="cell", init_channels=2, layers=3, backend="reference"), 4)
    with pytest.raises(InputError, match="memory='cell' says already how cells keep"):
        model.fit_to_part(IMAGES, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"accumulate": 2, "memory": "800MB"},
            "accumulate 2 chooses itself .* so does memory 800MB: leave one",
        ),
        ({"accumulate": 2, "memory": "store"}, "and so does memory store"),
        ({"accumulate": 2, "backend": "reference"}, "the reference path has none: choose --memory cell"),
        ({"accumulate": 2, "sync_bn": True, "backend": "reference"}, "the reference path has none"),
        ({"accumulate": 2, "space": "nasbench201"}, "of the cells of DARTS: .* choose --memory recompute"),
        ({"accumulate": 3}, "accumulate must divide batch_size, 64 images"),
        ({"accumulate_statistics": "part"}, "needs parts of a batch: --accumulate 4"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        CNNConfig(**changes).check()


def test_methods_that_draw_and_an_own_criterion_of_parts_go_with_it():
    for changes in ({"method": "gdas"}, {"smooth": 0.3}, {"method": "p-darts", "epochs": 3}):
        config = CNNConfig(accumulate=2, **changes)
        config.check()
        assert config.parts == 1 and config.plan == "accumulate 2"


def test_a_run_of_before_there_was_a_choice_goes_on_with_parts():
    values = dataclasses.asdict(CNNConfig(accumulate=4))
    del values["accumulate_statistics"]
    with pytest.warns(
        UserWarning, match="had not the options accumulate_statistics: it goes on with .*'part'"
    ):
        assert restored_config(CNNConfig, values).parts == 4
    values["accumulate"] = 1
    with pytest.warns(UserWarning, match="it goes on with accumulate_statistics 'batch'"):
        assert restored_config(CNNConfig, values).parts == 1


@needs_cpu
def test_a_search_leaves_the_bits_of_store_and_goes_on_with_a_memory(tmp_path):
    options = {**OPTIONS["cnn"](tmp_path), "backend": "cpu", "batch_size": 4, "order": 2, "epochs": 1}
    search_cnn(CNNConfig(**options, out=str(tmp_path / "store")))
    search = CNNSearch(CNNConfig(**options, accumulate=2))
    assert re.search(r"; accumulate 2: .*recompute cells .*; peak [0-9.]+ ", search.introduction())
    assert search.smaller()[1][0] == "--memory"
    (tmp_path / "parts").mkdir()
    save_checkpoint(tmp_path / "parts", begun(search, 1))
    search_cnn(CNNConfig(memory="cell"), resume=tmp_path / "parts")
    a, b = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("store", "parts"))
    config = b.pop("config")
    assert a.pop("config")["accumulate"] == config["accumulate"] == 1 and config["memory"] == "cell"
    same(a, b)


@needs_cpu
def test_the_command_explains_the_plan(capsys):
    pytest.importorskip("rich")
    small = ["--init_channels", "2", "--layers", "3", "--image_size", "8", "--backend", "cpu"]
    command = ["explain", "cnn", *small, "--batch_size", "32", "--order", "2"]
    assert main([*command, "--accumulate", "2"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("accumulate 2: "))
    peak = re.search(r"peak ([0-9.]+) MB", line)[1]
    assert f" {peak} " in next(row for row in reversed(text.splitlines()) if "iteration" in row)
    assert main([*command, "--accumulate", "32"]) == 2
    assert "accumulate 32 is too much" in capsys.readouterr().err
