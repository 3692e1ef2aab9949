"""Options that are given, if at their defaults; options that go together; how much a test says."""

import copy
import dataclasses
import pickle
import re

import pytest
from small_data import image_folder, text_folder

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.candidates import RandomRNNConfig, SelectCNNConfig, SelectRNNConfig
from dartsfast.cli import _parser, main
from dartsfast.cnn.genotypes import DARTS_V1
from dartsfast.errors import InputError
from dartsfast.export import export_network
from dartsfast.runs.checkpoint import save_checkpoint
from dartsfast.runs.report import Report
from dartsfast.search import CNNConfig, search_cnn
from dartsfast.tables import print_table
from dartsfast.train import (
    TestCNNConfig,
    TestRNNConfig,
    TrainCNNConfig,
    TrainRNNConfig,
    test_cnn,
    train_cnn,
    train_rnn,
)
from dartsfast.train.evaluate import TestResult, trained_weights

pytestmark = pytest.mark.usefixtures("undrawn_module")


@pytest.fixture(scope="module")
def undrawn_module():
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Report, "draw", lambda *arguments, **options: None)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, undrawn_module):
    """Return the folders of a training of each kind, of one epoch."""
    folder = tmp_path_factory.mktemp("runs")
    images = f"imagefolder:{image_folder(folder / 'images', train=4, side=32)}"
    small = {"init_channels": 2, "layers": 3, "batch_size": 6, "epochs": 1}
    cnn = train_cnn(TrainCNNConfig(data=images, out=str(folder / "cnn"), workers=1, **small))
    sizes = {"emsize": 6, "nhid": 6, "nhidlast": 6, "batch_size": 4, "epochs": 1, "lr": 1.0}
    text = str(text_folder(folder / "text"))
    rnn = train_rnn(TrainRNNConfig(data=text, out=str(folder / "rnn"), **sizes))
    return {"cnn": cnn.out, "rnn": rnn.out}


def test_options_know_which_of_them_were_given():
    given = TestCNNConfig(data="photos", layers=3)
    assert given.given == {"data", "layers"} and TestCNNConfig().given == set()
    assert TestCNNConfig("DARTS").given == {"arch"}
    assert given.but(layers=4, image_size=8).given == {"data", "layers", "image_size"}
    assert (given.but(layers=4).layers, given.layers) == (4, 3)
    for same in (copy.copy(given), copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert same == given and same.given == given.given
    assert TestCNNConfig(data="photos") == TestCNNConfig()


OTHERS = {  # of another method, space or selection, as they are by default
    "pc_share": ("4", "is of --method pc-darts, and the method is darts"),
    "gdas_tau_max": ("10", "is of --method gdas"),
    "drnas_kl": ("0.001", "is of --method drnas"),
    "pdarts_skips": ("2", "is of --method p-darts"),
    "select_epochs": ("10", "is of --select perturbation"),
    "stage_cells": ("5", "is of --space nasbench201"),
    "smooth_by": ("random", "needs a radius"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_option_of_another_method_is_refused_if_given_as_it_is_by_default(tmp_path, capsys, name):
    value, message = OTHERS[name]
    options = [f"--data={image_folder(tmp_path / 'images')}", f"--out={tmp_path / 'out'}"]
    assert main(["search", "cnn", f"--{name}={value}", *options]) == 2
    said = capsys.readouterr().err
    assert name in said and message in said and not (tmp_path / "out").exists()
    assert main(["select", "cnn", f"--search_{name}={value}", *options]) == 2
    assert f"of the options --search_...: {name}" in capsys.readouterr().err


def test_an_option_of_another_method_may_be_in_a_copy_or_file_as_it_is_by_default(tmp_path, capsys):
    given = {"data": f"imagefolder:{image_folder(tmp_path / 'images')}", "init_channels": 2, "layers": 1}
    config = CNNConfig(**given, image_size=8, batch_size=3, epochs=1, out=str(tmp_path / "run"))
    search_cnn(config)
    dataclasses.replace(config, epochs=2).check()
    CNNConfig(**vars(config)).check()
    SelectCNNConfig(search_layers=1).check()
    words = ["search", "cnn", f"--config={tmp_path / 'run' / 'config.toml'}"]
    assert main([*words, "--pc_share=4"]) == 2 and "pc_share is of --method" in capsys.readouterr().err
    assert main([*words, f"--out={tmp_path / 'again'}"]) == 0
    with pytest.raises(InputError, match="layers counts cells of DARTS"):
        CNNConfig(space="nasbench201", layers=8).check()


@pytest.mark.parametrize(
    ("kind", "config"), [("cnn", TestCNNConfig), ("rnn", TestRNNConfig)], ids=["cnn", "rnn"]
)
def test_a_test_reads_the_data_that_it_was_given(runs, capsys, kind, config):
    """Photographs have ten classes, and the network was trained on three; the words are others, too."""
    assert main(["test", kind, str(runs[kind])]) == 0
    capsys.readouterr()
    wrong = {"cnn": "are not of this network", "rnn": "the vocabulary of pydoc is not that of the training"}
    assert main(["test", kind, str(runs[kind]), f"--data={config.data}"]) == 2
    assert wrong[kind] in capsys.readouterr().err


def test_a_test_reads_images_in_as_many_processes_as_the_training(runs):
    here = TestCNNConfig(model_path=str(runs["cnn"]))
    assert trained_weights(here)[0].workers == 1
    assert trained_weights(here.but(workers=TestCNNConfig.workers))[0].workers == TestCNNConfig.workers == 4


@pytest.mark.parametrize("classes", [5, 6])
def test_five_guesses_of_five_classes_are_not_spoken_of(classes):
    words = str(TestResult(1.0, 60.0, 97.5, 10, classes))
    assert words.startswith("test error 40.00 %") and ("(2.50 % with five guesses)" in words) == (
        classes == 6
    )


@pytest.mark.parametrize(("kind", "other"), [("cnn", "rnn"), ("rnn", "cnn")])
def test_what_is_of_the_other_kind_is_told_so(runs, tmp_path, capsys, kind, other):
    """A run, to be tested, gone on with or trained anew; weights, to be tested."""
    here = str(runs[other])
    for words in (["test", kind, here], ["train", kind, "--resume", here]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert (
            f"is of a `train {other}`, not of a `train {kind}`: name the folder of a `train {kind}`, or"
            in said
        )
        assert f"say {other} in place of {kind}" in said and said.count("checkpoint") == 1
    assert main(["train", kind, here, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert (
        f"genotype.json: a cell of {other.upper()}s" in said and f"such as `dartsfast train {other}`" in said
    )
    small = {"cnn": ["--init_channels=2", "--layers=2"], "rnn": ["--emsize=4", "--nhid=4", "--nhidlast=4"]}
    assert main(["test", kind, f"{here}/weights.pt", *small[kind]]) == 2
    assert f"not of this network, but of one that `dartsfast test {other}` tests" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_search_is_no_training(tmp_path, capsys):
    save_checkpoint(tmp_path, {"kind": "cnn"})
    save_checkpoint(tmp_path, {"kind": "cnn"})
    for words in (["test", "cnn", str(tmp_path)], ["train", "cnn", "--resume", str(tmp_path)]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"`dartsfast train cnn {tmp_path}` trains its cell" in said and said.count("search cnn") == 1
    assert main(["test", "rnn", str(tmp_path)]) == 2
    assert (
        "is of a `search cnn`, not of a `train rnn`: name the folder of a `train rnn`\n"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"init_channels": 3}, r"k: stem.0.weight and 102 more of another size \(\[6, 3, 3, 3\], not \[9,"),
        ({"layers": 4}, r"network: cells.3.*weight and \d+ more missing\."),
        ({"layers": 2}, r"cells.* of another size .*, .* 6 more missing, .* 95 more not of it\. --arch, "),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_told_by_what_differs(runs, wrong, message):
    right = {"init_channels": 2, "layers": 3, "data": f"imagefolder:{runs['cnn'].parent / 'images'}"}
    with pytest.raises(InputError, match=message):
        test_cnn(TestCNNConfig(model_path=str(runs["cnn"] / "weights.pt"), **{**right, **wrong}))


@pytest.mark.parametrize("file", ["weights.pt", "checkpoint.pt"])
def test_weights_are_no_cell(runs, file, capsys):
    assert main(["train", "cnn", str(runs["cnn"] / file)]) == 2
    assert "which do not say which cell they are of: name the folder of the run" in capsys.readouterr().err


def test_a_title_is_one_line_above_a_narrow_table(monkeypatch, capsys):
    pytest.importorskip("rich")
    title = "the rather long title of a table " * 3
    print_table(title, ["a"], [["1"]], 1)
    assert title in capsys.readouterr().out.splitlines()


def test_places_are_shown_whole_however_a_run_was_named(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--data", f"imagefolder:{runs['cnn'].parent / 'images'}", "--init_channels=2", "--layers=1"]
    assert main(["train", "cnn", *small, "--epochs=1", "--batch_size=6", "--out", "here"]) == 0
    assert main(["train", "cnn", "--resume", "here"]) == 0
    places = re.findall(r"^weights .*", capsys.readouterr().out, re.M)
    assert places == [f"weights     {tmp_path / 'here' / 'weights.pt'}"] * 2


@pytest.mark.parametrize("option", ["layers", "init_channels", "image_size", "arch", "network"])
def test_an_option_of_the_network_at_its_default_is_refused_beside_a_training(runs, capsys, option):
    words = [f"--{option}", str(getattr(TestCNNConfig, option))]
    for command in (["test", "cnn"], ["export"]):
        assert main([*command, str(runs["cnn"]), *words]) == 2
        assert f"knows its own network: leave out --{option}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["search rnn", "explain rnn", "train rnn", "random rnn"])
def test_an_rnns_features_are_called_as_on_the_command_line(command, capsys):
    assert main([*command.split(), "--emsize", "6"]) == 2
    assert "emsize, nhid and nhidlast must be equal" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["arch", "emsize", "nhid", "nhidlast"])
def test_and_beside_a_recurrent_one(runs, capsys, option):
    words = [f"--{option}", str(getattr(TestRNNConfig, option))]
    assert main(["test", "rnn", str(runs["rnn"]), *words]) == 2
    assert f"knows its own network: leave out --{option}" in capsys.readouterr().err
    if option == "arch":
        assert main(["export", str(runs["rnn"]), "--format", "module", *words]) == 2
        assert "knows its own network: leave out --arch" in capsys.readouterr().err
    assert main(["export", "rnn:DARTS_V2", "--format", "module", "--layers", "20"]) == 2
    assert "is a cell, without weights: leave out --layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["test", "cnn", "~nobody-of-this-name/run"],
        ["test", "rnn", "~nobody-of-this-name/run"],
        ["test", "cnn", "--model_path", "~nobody-of-this-name/weights.pt"],
        ["export", "~nobody-of-this-name/run"],
        ["export", "~nobody-of-this-name/weights.pt"],
        ["export", "DARTS_V2", "--format", "module", "--out", "~nobody-of-this-name/net"],
        ["train", "cnn", "~nobody-of-this-name/run"],
        ["report", "~nobody-of-this-name/run"],
    ],
)
def test_homes_of_nobody_are_said_in_a_line(capsys, words):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "~nobody-of-this-name" in error and error.count("\n") == 1


def test_protocols_of_recurrent_cells_are_everywhere(capsys):
    wt2 = {"emsize": 700, "nhid": 700, "nhidlast": 700, "dropouth": 0.15, "wdecay": 5e-7}
    assert RandomRNNConfig.protocol("wt2") == TrainRNNConfig.protocol("wt2") == wt2
    assert SelectRNNConfig.protocol("wt2") == {f"train_{name}": value for name, value in wt2.items()}
    sizes = ("emsize", "nhid", "nhidlast")
    assert TestRNNConfig.protocol("wt2") == {name: wt2[name] for name in sizes}
    for words in (
        ["random", "rnn", "--preset"],
        ["test", "rnn", "--preset"],
        ["select", "rnn", "--train_preset"],
    ):
        assert _parser().parse_args([*words, "wt2"]).preset == "wt2"
    assert _parser().parse_args(["export", "x", "--preset", "imagenet"]).preset == "imagenet"


def test_a_protocol_reaches_a_selection(tmp_path, capsys):
    """But for options beside it; the selection itself is refused, after its options are read."""
    words = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--train_nhid", "7"]
    assert main(["select", "rnn", "--train_preset", "wt2", *words]) == 2
    assert (
        "must be equal (the decoder is tied to the embedding), got 700, 7 and 700" in capsys.readouterr().err
    )


def test_a_protocol_of_an_export_says_which_network(tmp_path, capsys):
    words = ["export", "DARTS_V2", "--format", "module", "--preset", "imagenet", "--init_channels", "4"]
    assert main([*words, "--classes", "3", "--layers", "2", "--out", str(tmp_path / "net")]) == 0
    text = (tmp_path / "net.py").read_text()
    assert "NetworkImageNet" in text and "Network(4, 3, 2)" in text


@pytest.mark.parametrize("kind", ["cnn", "rnn"])
def test_how_much_a_test_says(runs, capsys, kind):
    said = {}
    for much in ("--quiet", "--verbose", "--device=cpu"):
        assert main(["test", kind, str(runs[kind]), much]) == 0
        said[much] = capsys.readouterr().out.splitlines()
    quiet, verbose, usual = said.values()
    assert quiet == usual == verbose[2:] and len(usual) == 1
    assert re.match(rf"testing {re.escape(str(runs[kind]))} on .*, on cpu, [\d.]+ M parameters", verbose[0])
    assert re.fullmatch(r"  testing [\d.e-]+ s", verbose[1])


def test_a_genotype_is_exported_as_it_is(tmp_path):
    named, taken = (
        export_network(what, ["module"], out=str(tmp_path / name))[0].path.read_text()
        for name, what in (("named", "DARTS_V1"), ("taken", DARTS_V1))
    )
    assert named == taken
    with pytest.raises(InputError, match="genotype"):
        export_network(3, ["module"])
