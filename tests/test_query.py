"""What ``dartsfast query`` reads from tables, small ones that ``nats_bench`` has written."""

import builtins
import json

import pytest

from dartsfast.cli import main
from dartsfast.errors import InputError
from dartsfast.genotypes import RNN, resolve_genotype
from dartsfast.query import query_nasbench201

CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
OTHER = CELL.replace("none~1", "nor_conv_1x1~1")
SETS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
}


def figure(dataset, part, seed, epoch):
    """Return an accuracy in percent: other ones for everything that there is."""
    parts = ("train", "x-valid", "x-test", "ori-test")
    return 10 * [*SETS].index(dataset) + 2 * parts.index(part) + seed + epoch / 1000


def trained(utils, dataset, seed, epochs):
    train = {e: figure(dataset, "train", seed, e) for e in range(epochs)}
    losses = {e: 1 / (1 + accuracy) for e, accuracy in train.items()}
    result = utils.ResultsCount(
        dataset, None, train, losses, 1.5, 80.25, {"arch_str": CELL}, seed, epochs, [0.02]
    )
    result.update_train_info(train, None, losses, dict.fromkeys(range(epochs), 3.0))
    for part in SETS[dataset]:
        accuracies = {f"{part}@{e}": figure(dataset, part, seed, e) for e in range(epochs)}
        times = dict.fromkeys(accuracies, 0.5)
        result.update_eval(accuracies, {name: 1 / (1 + a) for name, a in accuracies.items()}, times)
    return result


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Return a table as a folder, and the same as a file: CELL at place 1, no ImageNet16-120."""
    utils = pytest.importorskip("nats_bench.api_utils")
    folder = tmp_path_factory.mktemp("table")
    found = {}
    for epochs, seeds in ((12, (1,)), (200, (1, 4))):
        results = utils.ArchResults(1, CELL)
        for dataset in SETS:
            for seed in seeds:
                results.update(dataset, seed, trained(utils, dataset, seed, epochs))
        found[str(epochs)] = results.state_dict()
    meta = {"meta_archs": [OTHER, CELL], "arch2infos": {1: found}, "evaluated_indexes": {1}}
    simple = folder / "NATS-tss-v1_0-3ffb9-simple"
    simple.mkdir()
    utils.pickle_save({"meta_archs": meta["meta_archs"]}, simple / "meta.pickle")
    utils.pickle_save(found, simple / "000001.pickle")
    utils.pickle_save(meta, folder / "NATS-tss-v1_0-3ffb9.pickle")
    return simple, folder / "NATS-tss-v1_0-3ffb9.pickle.pbz2"


@pytest.mark.parametrize("form", [0, 1], ids=["folder", "file"])
@pytest.mark.parametrize(
    ("dataset", "epochs", "valid", "test"),
    [
        ("cifar10", 200, ("cifar10-valid", "x-valid"), ("cifar10", "ori-test")),
        ("cifar100", 200, ("cifar100", "x-valid"), ("cifar100", "x-test")),
        ("cifar100", 12, ("cifar100", "x-valid"), ("cifar100", "x-test")),
    ],
)
def test_a_cell_is_looked_up(tables, form, dataset, epochs, valid, test):
    answer = query_nasbench201(CELL, str(tables[form]), dataset, epochs)
    seeds = (1, 4) if epochs == 200 else (1,)
    places = {"train": (dataset, "train"), "validation": valid, "test": test}
    for name, place in places.items():
        wanted = [figure(*place, seed, epochs - 1) for seed in seeds]
        assert answer[name]["accuracy"] == pytest.approx(sum(wanted) / len(seeds)), name
        assert answer[name]["loss"] == pytest.approx(sum(1 / (1 + a) for a in wanted) / len(seeds)), name
    assert answer["trainings"] == len(seeds) and answer["seconds"] == 3.0 * epochs
    assert (answer["parameters"], answer["flops"], answer["latency"]) == (1.5, 80.25, 0.02)
    assert (answer["architecture"], answer["index"]) == (CELL, 1)
    assert (answer["dataset"], answer["epochs"]) == (dataset, epochs)


def test_the_command_finds_the_usual_place_and_the_cell_of_a_run(tables, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tables[0].parent))
    (tmp_path / "genotype.json").write_text(json.dumps({"architecture": CELL}))
    assert main(["query", "nasbench201", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == query_nasbench201(CELL)
    assert main(["query", "nasbench201", CELL]) == 0
    said = capsys.readouterr().out
    test = (figure("cifar10", "ori-test", 1, 199) + figure("cifar10", "ori-test", 4, 199)) / 2
    for words in (CELL, "200 epochs on cifar10, mean of 2 trainings", "1.500 M", "80.25 M an image", "600 s"):
        assert words in said
    assert f"test        {test:.2f} %, loss " in said


def test_what_a_table_lacks(tables, tmp_path):
    folder, file = map(str, tables)
    with pytest.raises(InputError, match="has no 200 epochs on ImageNet16-120 of .*: choose others"):
        query_nasbench201(CELL, file, "ImageNet16-120")
    with pytest.raises(InputError, match="has no 12 epochs on cifar10"):
        query_nasbench201(OTHER, folder, "cifar10", 12)  # of which there is no file
    with pytest.raises(InputError, match="has no 200 epochs on cifar10"):
        query_nasbench201(OTHER, file)
    with pytest.raises(InputError, match="has 2 cells, and .* is none of them"):
        query_nasbench201(CELL.replace("none", "skip_connect"), folder)
    (tmp_path / "broken").write_text("no table")
    for path in (tmp_path / "broken", tmp_path):
        with pytest.raises(InputError, match="is no table that nats_bench reads"):
            query_nasbench201(CELL, str(path))


def test_a_cell_that_is_none_is_answered_with_what_would_do():
    with pytest.raises(InputError, match=r"no cell of NAS-Bench-201 'nowhere': .*nasbench201.*\|op~0\|\+"):
        query_nasbench201("nowhere")
    with pytest.raises(InputError, match="no genotype 'nowhere': .* one of rnn:ENAS, ") as caught:
        resolve_genotype("nowhere", RNN)
    assert "cnn:" not in str(caught.value)


def test_a_table_that_is_not_there(tables, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no table .*nowhere: give with --table the folder NATS-tss-v1_0"):
        query_nasbench201(CELL, str(tmp_path / "nowhere"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="3ffb9-simple nor .*3ffb9.pickle.pbz2: give with --table"):
        query_nasbench201(CELL)


def test_a_package_that_is_not_there(monkeypatch, tmp_path, capsys):
    real = builtins.__import__

    def lacking(name, *arguments, **options):
        if name == "nats_bench":
            raise ModuleNotFoundError("No module named 'nats_bench'", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    assert main(["query", "nasbench201", CELL, "--table", str(tmp_path)]) == 2
    assert "nats_bench is not installed: pip install 'dartsfast[tables]'" in capsys.readouterr().err


def test_a_cell_of_another_network(capsys):
    assert main(["query", "nasbench201", "DARTS_V2"]) == 2
    assert "a cell of CNNs" in capsys.readouterr().err
