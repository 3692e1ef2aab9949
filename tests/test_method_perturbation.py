"""Selection by perturbation: decisions against their definition, tuning, and a run that is stopped."""

import copy

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from small_runs import begun, cnn_options, same, stopped_and_resumed
from test_methods import DARTS, forward

from dartsfast.errors import InputError
from dartsfast.methods.perturbation import Selection
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.runs.record import read_run
from dartsfast.search import CNNConfig, search_cnn
from dartsfast.search.cnn import CNNSearch

pytestmark = pytest.mark.usefixtures("undrawn")

INTO = [[0, 1], [2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13]]


def options(tmp_path, **others):
    given = {**cnn_options(tmp_path), "epochs": 1, "backend": "reference", "max_images": 3}
    return {**given, "select": "perturbation", "select_epochs": 1, **others}


def test_decisions_against_a_score_that_adds_up(tmp_path):
    """Where every operation adds worth times weight to the accuracy, what hurts most is known beforehand."""
    model = CNNSearch(CNNConfig(**options(tmp_path, space="s3"))).model.double()
    worth = torch.rand(2, 14, 3, dtype=torch.float64)
    with torch.no_grad():
        for alpha in model.arch_parameters():
            alpha.normal_()
    weights = [alpha.detach().softmax(-1) for alpha in model.arch_parameters()]
    selection = Selection(model, 5)

    def accuracy():
        rows = [model._adjust(found.clone(), bool(kind)) for kind, found in enumerate(weights)]
        return sum((worth[kind] * found).sum().item() for kind, found in enumerate(rows))

    for decision in range(17):
        assert selection.decisions == decision
        selection.decide_(model, accuracy)
        assert (selection.chosen >= 0).sum().item() == 2 * min(decision + 1, 14)
    wanted = [(worth[kind] * found)[:, 1:].argmax(-1) + 1 for kind, found in enumerate(weights)]
    assert torch.equal(selection.chosen, torch.stack(wanted))  # none, the first, is never chosen
    for kind, edges in enumerate(selection.chosen):
        left = worth[kind].gather(1, edges[:, None])[:, 0]
        best = {node[k] for node in INTO for k in left[node].topk(2).indices.tolist()}
        assert set(selection.kept[kind].nonzero().flatten().tolist()) == best
        cell = (model.genotype().normal, model.genotype().reduce)[kind]
        names = [("none", "skip_connect", "sep_conv_3x3")[k] for k in edges]
        pairs = {(names[e], e - node[0], n) for n, node in enumerate(INTO) for e in node if e in best}
        assert {(*one, place // 2) for place, one in enumerate(cell)} == pairs


def test_orders_are_random_and_of_the_seed(tmp_path):
    model = CNNSearch(CNNConfig(**options(tmp_path))).model
    orders = [(one.edges, one.nodes) for one in (Selection(model, seed) for seed in (1, 1, 2))]
    assert orders[0] == orders[1] != orders[2] and orders[0][0][0] != orders[0][0][1]
    assert all(sorted(edges) == list(range(14)) for edges in orders[0][0])
    assert all(sorted(nodes) == [1, 2, 3] for nodes in orders[0][1])


def test_the_accuracy_is_that_of_norms_of_the_batch(tmp_path):
    search = CNNSearch(CNNConfig(**options(tmp_path, max_images=0)))
    model = search.model
    model.train()(torch.randn(4, 3, 8, 8))  # running statistics that are other ones
    before, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model).train()
    right = count = 0
    for x, y in search.check.iterate(0):
        right += (forward(twin, x, DARTS().rows(twin)).argmax(-1) == y).sum().item()
        count += len(y)
    assert search._validate(as_trained=True)[1] == pytest.approx(100 * right / count)
    same(model.state_dict(), before)


def test_a_search_selects_tunes_and_goes_on_to_the_same_bits(tmp_path, capsys):
    given, whole = options(tmp_path, space="s2", layers=1), tmp_path / "whole"
    result = search_cnn(CNNConfig(**given, out=str(whole)))
    said = capsys.readouterr().out
    assert "; 1 epoch of search, then 16 of tuning between 17 decisions, data" in said
    for line in ("epoch 1/17  ", "epoch 2/17, tuning  ", "epoch 17/17, tuning  "):
        assert f"\n{line}" in said
    assert result.lesson.startswith("after 17 epochs (16 of tuning) the search network")
    assert len(result.history) == 17 and read_run(whole).total == 17 and read_run(whole).state == "finished"
    assert [row["lr"] for row in result.history] == pytest.approx([0.025] + [0.0025] * 16)
    state = load_checkpoint(whole, "cnn")
    decided = state["extra"]["selection"]
    assert decided["decisions"] == 17 and (decided["chosen"][1] >= 0).all()
    assert [decided["kept"][1, node].sum().item() for node in INTO] == [2] * 4
    again = stopped_and_resumed(given, tmp_path / "parts", [(0, 0), (1, 0), (15, 0)])
    same(state, load_checkpoint(tmp_path / "parts", "cnn"))
    assert again.genotype == result.genotype
    capsys.readouterr()
    search_cnn(CNNConfig(), resume=whole)
    assert "is finished: all 17 epochs (16 of tuning) are done" in capsys.readouterr().out


def test_what_fails_while_it_decides_leaves_all_as_it_was(tmp_path):
    model = CNNSearch(CNNConfig(**options(tmp_path))).model
    selection, calls = Selection(model, 0), iter([1.0] * 9)  # the normal cell's edge is decided by then
    with pytest.raises(StopIteration):
        selection.decide_(model, lambda: next(calls))
    assert (selection.chosen == -1).all() and selection.decisions == 0
    assert model._adjust == selection.adjusted


def test_a_selection_of_another_moment_is_refused(tmp_path):
    search = CNNSearch(CNNConfig(**options(tmp_path)))
    state = begun(search, 1)
    state["extra"]["selection"]["chosen"][0, 3] = 2
    with pytest.raises(InputError, match="extra.selection is not of a moment after 0 decisions"):
        CNNSearch(search.config).check_state(state)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"select_epochs": 3}, "select_epochs is of --select perturbation"),
        ({"select": "perturbation", "method": "gdas"}, "not with --method gdas"),
        ({"select": "perturbation", "stop": "skips=2"}, "not with --stop skips=2"),
        ({"select": "perturbation", "select_epochs": 0}, "select_epochs must be above 0"),
    ],
)
def test_options_that_cannot_work(given, message):
    with pytest.raises(InputError, match=message):
        CNNConfig(**given).check()
