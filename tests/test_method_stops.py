"""Searches that end before their last epoch, with the right cell; runs of before there were the options."""

import dataclasses
import warnings

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from small_runs import begun, cnn_options, same, stopped_and_resumed

from dartsfast.errors import InputError
from dartsfast.genotypes import resolve_genotype
from dartsfast.methods.eigenvalue import _convolved
from dartsfast.methods.stops import skip_connections, stopped
from dartsfast.runs.checkpoint import load_checkpoint, save_checkpoint
from dartsfast.runs.options import METHOD
from dartsfast.runs.page import state_words
from dartsfast.runs.record import read_run
from dartsfast.search import CNNConfig, search_cnn
from dartsfast.search.cnn import CNNSearch

pytestmark = pytest.mark.usefixtures("undrawn")

# By hand: the mean 0.2 of epochs 1 to 5 over that of 6 to 10, 0.27, is 0.741, below 0.75; before 0.2 / 0.25.
GROWING = [0.2] * 5 + [0.2, 0.25, 0.3, 0.3, 0.3, 9.0]


def options(tmp_path, **others):
    given = {**cnn_options(tmp_path), "layers": 1, "backend": "reference", "epochs": 12, "space": "s2"}
    return {**given, "max_images": 3, "arch_learning_rate": 0.1, **others}


@pytest.mark.parametrize("method", ["darts", "pc-darts"])
def test_the_eigenvalue_stops_with_the_cell_of_five_epochs_before(tmp_path, monkeypatch, capsys, method):
    monkeypatch.setattr(CNNSearch, "_eigenvalue", lambda search: GROWING[search.epoch])
    given = options(tmp_path, method=method, init_channels=4, stop="eigenvalue")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = search_cnn(CNNConfig(**given, out=str(whole)))
    assert [row["eigenvalue"] for row in result.history] == GROWING[:10]
    assert "the search stops here, with the cell of epoch 5" in capsys.readouterr().out.replace("\n", " ")
    notes = read_run(whole).notes
    fifth, ninth = (notes[n]["alphas"]["alphas_reduce"] for n in (5, 9))
    assert fifth["weights"] != ninth["weights"]
    if method == "darts":
        assert torch.equal(result.alphas["alphas_reduce"], torch.tensor(fifth["weights"]))
    assert [list(one) for one in result.genotype.reduce] == fifth["kept"]
    assert stopped_and_resumed(given, parts, [(4, 0), (9, 0)]).genotype == result.genotype
    same(load_checkpoint(whole, "cnn"), load_checkpoint(parts, "cnn"))


def test_a_stopped_run_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(CNNSearch, "_eigenvalue", lambda search: GROWING[search.epoch])
    out = tmp_path / "run"
    result = search_cnn(CNNConfig(**options(tmp_path, stop="eigenvalue"), out=str(out)))
    assert resolve_genotype(str(out)) == result.genotype
    capsys.readouterr()
    again = search_cnn(CNNConfig(), resume=out)
    assert "is finished: 10 epochs are done" in capsys.readouterr().out
    assert again.genotype == result.genotype and len(again.history) == 10
    record = read_run(out)
    assert record.state == "finished" and state_words(record) == "finished: 10 of 10 epochs"
    assert record.end == "the search has ended by itself after epoch 10" and not record.problems


def test_skip_connections_stop_with_the_cell_that_has_them(tmp_path):
    given = options(tmp_path, stop="skips=5")
    whole = tmp_path / "whole"
    result = search_cnn(CNNConfig(**given, out=str(whole)))
    counts = [row["skips"] for row in result.history]
    assert len(counts) < 12, counts
    assert counts[-1] >= 5 > max(counts[:-1], default=0)
    assert [name for name, _ in result.genotype.normal].count("skip_connect") == counts[-1]


def test_where_searches_stop():
    eigenvalue, two = CNNConfig(stop="eigenvalue"), CNNConfig(stop="skips=2")
    rows = [{"eigenvalue": value} for value in GROWING]
    assert [stopped(eigenvalue, rows[:n]) for n in range(11)] == [False] * 10 + [True]
    assert [stopped(two, [{"skips": n}]) for n in range(4)] == [False, False, True, True]
    assert not stopped(CNNConfig(), [{}]) and not stopped(two, [])
    with pytest.raises(InputError, match="rows without skips"):
        stopped(two, [{"epoch": 1}])
    assert skip_connections([("skip_connect", 0), ("sep_conv_3x3", 1), ("skip_connect", 2)]) == 2


@pytest.mark.parametrize("stop", ["skips", "skips=", "skips=0", "skips=-1", "skips=x", "2"])
def test_stops_that_are_none(stop):
    with pytest.raises(InputError, match="stop must be none, eigenvalue, or skips=N"):
        CNNConfig(stop=stop).check()


def test_a_stop_by_the_eigenvalue_of_a_drawn_loss():
    with pytest.raises(InputError, match="the eigenvalue is of a loss"):
        CNNConfig(stop="eigenvalue", method="drnas").check()


def test_alphas_to_go_back_to_are_looked_at(tmp_path):
    search = CNNSearch(CNNConfig(**options(tmp_path, stop="eigenvalue")))
    state = begun(search, 1)
    state["extra"]["earlier"] = [[torch.zeros(14, 2)] * 2]
    with pytest.raises(InputError, match="extra.earlier has the alphas of 1 epochs, not of 0"):
        CNNSearch(search.config).check_state(state)


def test_a_run_of_before_there_were_the_options_goes_on_with_their_defaults(tmp_path):
    given = {**cnn_options(tmp_path), "layers": 1, "backend": "reference"}
    search_cnn(CNNConfig(**given, out=str(tmp_path / "whole")))
    (tmp_path / "old").mkdir()
    fields = dataclasses.fields(CNNConfig)
    new = [field.name for field in fields if field.metadata["group"] == METHOD]

    def old(state):
        kept = {name: value for name, value in state["config"].items() if name not in new}
        return {**state, "config": kept}

    save_checkpoint(tmp_path / "old", old(begun(CNNSearch(CNNConfig(**given)), 1)))
    with pytest.warns(UserWarning, match="had not the options method, space.*method 'darts', space 'darts'"):
        result = search_cnn(CNNConfig(), resume=tmp_path / "old")
    same(load_checkpoint(tmp_path / "whole", "cnn"), load_checkpoint(tmp_path / "old", "cnn"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert search_cnn(CNNConfig(), resume=tmp_path / "old").genotype == result.genotype
    save_checkpoint(tmp_path / "old", old(load_checkpoint(tmp_path / "old", "cnn")))
    with pytest.warns(UserWarning, match="had not the options method"):
        assert search_cnn(CNNConfig(), resume=tmp_path / "old").genotype == result.genotype


def test_every_option_that_a_checkpoint_lacks_has_its_default():
    from dartsfast.runs.fit import restored_config

    values = dataclasses.asdict(CNNConfig(method="gdas", seed=7))
    for name in values:
        rest = {key: value for key, value in values.items() if key != name}
        with pytest.warns(UserWarning, match=f"had not the options {name}"):
            found = restored_config(CNNConfig, rest)
        assert dataclasses.asdict(found) == {**values, name: getattr(CNNConfig(), name)}


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"), [(3, 2, 2, 2, 4), (1, 1, 0, 1, 1)]
)
def test_convolutions_of_the_eigenvalue_are_differentiable_twice(kernel, stride, padding, dilation, groups):
    torch.manual_seed(0)
    sizes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": False}
    conv = torch.nn.Conv2d(4, 4, kernel, **sizes).double().requires_grad_(False)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(_convolved(conv, x), conv(x))
    assert torch.autograd.gradcheck(lambda x: _convolved(conv, x), x)
    assert torch.autograd.gradgradcheck(lambda x: _convolved(conv, x).sigmoid(), x)
