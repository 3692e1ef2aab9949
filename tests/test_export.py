"""Networks for use elsewhere: files that compute what the networks do, by themselves, or are not written."""

import dataclasses
import errno
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from exported import ALL, EVERY, python, small, written
from exported import few_words as few_words  # fixtures
from small_data import image_folder, text_folder

from dartsfast.cli import main
from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.cnn.model import NetworkCIFAR, NetworkImageNet
from dartsfast.cnn.operations import OPS
from dartsfast.errors import CheckFailedError, InputError
from dartsfast.export import BOUND, export_network, module_cnn
from dartsfast.export import formats as export_formats
from dartsfast.rnn import genotypes as rnn_genotypes
from dartsfast.rnn.model import RNNModel
from dartsfast.rnn.utils import ACTIVATIONS
from dartsfast.train import TestCNNConfig, TrainCNNConfig, TrainRNNConfig, train_cnn, train_rnn


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training of a network of all operations with a second classifier, and its options."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("training")
    data = f"imagefolder:{image_folder(folder / 'images', train=6, side=32)}"
    options = {"arch": repr(ALL), "init_channels": 2, "layers": 3, "auxiliary": True, "data": data}
    result = train_cnn(
        TrainCNNConfig(**options, batch_size=4, epochs=1, report_freq=9, out=str(folder / "run"))
    )
    return result, options


def network_of(training):
    result, _ = training
    network = NetworkCIFAR(2, 3, 3, True, ALL)
    network.load_state_dict(torch.load(result.weights))
    return network.eval()


def check_outputs(run, network):
    """Hold a file's function against the network on numbers of images that its check has not seen."""
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 32, 32, generator=generator)
        with torch.no_grad():
            wanted, found = network(images)[0], run(images)
        assert found.shape == wanted.shape == (batch, 3)
        assert (found - wanted).abs().max() <= BOUND * wanted.abs().max()


def said(training):
    """Return what files say of the images."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).tolist(), torch.tensor([0.229, 0.224, 0.225]).tolist()
    return {
        "genotype": repr(ALL),
        "classes": ["class0", "class1", "class2"],
        "mean": mean,
        "std": std,
        "image_size": 32,
    }


def test_a_program_of_torch_export(training, tmp_path, capsys):
    result, _ = training
    out = tmp_path / "net"
    assert main(["export", str(result.out), "--out", str(out)]) == 0
    line = rf"{out}\.pt2  largest difference \d\.\de[-+]\d\d of the largest output, at most 1e-04\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    extra = {"dartsfast.json": ""}
    program = torch.export.load(f"{out}.pt2", extra_files=extra)
    check_outputs(program.module(), network_of(training))
    weights = {name for name in torch.load(result.weights) if "auxiliary" not in name}
    assert set(program.state_dict) == weights
    about = json.loads(extra["dartsfast.json"])
    assert {name: about[name] for name in said(training)} == said(training)


def test_onnx(training, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    result, _ = training
    (path,), _ = written(str(result.out), ["onnx"], tmp_path / "net.onnx")
    assert path == tmp_path / "net.onnx"
    model = onnx.load(path)
    (shape,) = (value.type.tensor_type.shape.dim for value in model.graph.input)
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, 32, 32]
    assert not [tensor.name for tensor in model.graph.initializer if "auxiliary" in tensor.name]
    about = {entry.key: entry.value for entry in model.metadata_props}
    for name, value in said(training).items():
        assert about[name] == value or json.loads(about[name]) == value
    runs = [ReferenceEvaluator(model).run]
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        runs.append(onnxruntime.InferenceSession(path).run)
    for run in runs:
        check_outputs(
            lambda x, run=run: torch.tensor(run(None, {"images": x.numpy()})[0]), network_of(training)
        )


def test_a_trained_network_as_a_plain_file(training, tmp_path):
    result, _ = training
    (path,), (difference,) = written(str(result.out), ["module"], tmp_path / "plain")
    assert difference == 0.0
    assert {file.name for file in tmp_path.iterdir()} == {"plain.py", "plain.weights.pt"}
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys; sys.modules['dartsfast'] = None; sys.path.insert(0, '.'); import torch, plain\n"
        "torch.save(plain.trained()(torch.load('images.pt')), 'logits.pt')\n"
        "print([plain.CLASSES, plain.MEAN, plain.STD])"
    )
    classes, mean, std = eval(python(code, tmp_path))
    about = said(training)
    assert (classes, mean, std) == (about["classes"], about["mean"], about["std"])
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), network_of(training)(images)[0])
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", str(path)]
    if importlib.util.find_spec("ruff") is not None:
        assert subprocess.run(ruff, capture_output=True).returncode == 0


def test_a_network_for_imagenet(tmp_path):
    """Both formats of torch alone, of weights as the original's script saves them."""
    network = NetworkImageNet(4, 3, 3, True, ALL)
    network(torch.randn(2, 3, 224, 224))  # running statistics of its own
    torch.save({"state_dict": network.eval().state_dict()}, tmp_path / "saved.pt")
    sizes = {"init_channels": 4, "layers": 3, "auxiliary": True, "arch": repr(ALL)}
    given = TestCNNConfig.of("imagenet", **sizes)
    (program, plain), differences = written(
        str(tmp_path / "saved.pt"), ["torch", "module"], tmp_path / "net", network=given
    )
    assert differences[1] == 0.0 and "NetworkImageNet" in plain.read_text()
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        wanted, found = network(images)[0], torch.export.load(program).module()(images)
    assert (found - wanted).abs().max() <= BOUND * wanted.abs().max()
    small = TestCNNConfig.of("imagenet", image_size=32)
    with pytest.raises(InputError, match="got 32x32: use --image_size 224"):
        export_network("DARTS_V2", ["module"], network=small, out=str(tmp_path / "small"))


def test_weights_alone_with_the_options_of_their_test(training, tmp_path):
    result, options = training
    network = TestCNNConfig(**{name: value for name, value in options.items() if name != "data"})
    kept = str(result.weights)
    for k, given in enumerate(({}, {"data": options["data"]}, {"classes": 3})):
        (path,), _ = written(kept, ["module"], tmp_path / str(k), network=network, **given)
        assert ("MEAN = " in path.read_text()) == ("data" in given)
    for wrong in ({"init_channels": 3}, {"layers": 4}, {"auxiliary": False}, {"arch": "DARTS_V1"}):
        with pytest.raises(InputError, match="are not of this network: .*--arch"):
            export_network(kept, ["module"], network=dataclasses.replace(network, **wrong))
    with pytest.raises(InputError, match="are not of this network"):
        export_network(kept, ["module"], network=network, classes=4)
    with pytest.raises(InputError, match="--classes 4, and imagefolder:.* has 3: leave one out"):
        export_network(kept, ["module"], network=network, classes=4, data=options["data"])


def test_a_trained_recurrent_network_as_a_plain_file(tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    sizes = {"emsize": 6, "nhid": 6, "nhidlast": 6, "batch_size": 4, "epochs": 1, "lr": 1.0}
    data = str(text_folder(tmp_path / "text"))
    run = train_rnn(TrainRNNConfig(arch=repr(EVERY), data=data, out=str(tmp_path / "run"), **sizes))
    (path,), _ = written(str(run.out), ["module"], tmp_path / "plain")
    weights = torch.load(run.weights)
    words = len(weights["encoder.weight"])
    network = RNNModel(words, 6, 6, 6, genotype=EVERY)
    network.load_state_dict(weights)
    tokens, hidden = torch.randint(words, (5, 2)), torch.randn(1, 2, 6)
    spec = importlib.util.spec_from_file_location("plain", path)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert torch.equal(plain.trained()(tokens, hidden)[0], network.eval()(tokens, [hidden])[0])
    (alone,), _ = written(
        str(run.weights), ["module"], tmp_path / "alone", network=TestCNNConfig(arch=repr(EVERY))
    )
    assert alone.read_text() == path.read_text()
    for formats, options, message in (
        (["torch"], {}, "torch is a format of trained CNNs, and .* is recurrent"),
        (["module"], {"classes": 3}, "knows its own network: leave out --classes"),
    ):
        with pytest.raises(InputError, match=message):
            export_network(str(run.out), formats, out=str(tmp_path / "no"), **options)


@pytest.mark.parametrize("name", ["torch", "module"])
def test_a_file_that_computes_something_else_is_not_kept(training, tmp_path, monkeypatch, capsys, name):
    result, _ = training
    if name == "module":
        text = module_cnn.COMMON.replace("x[:, :, 1:, 1:]", "x")
        assert text != module_cnn.COMMON
        monkeypatch.setattr(module_cnn, "COMMON", text)
    else:
        # One of three logits, of the fifth image alone.
        wrong = torch.zeros(5, 3)
        wrong[4, 1] = 1e-3
        network = network_of(training)
        no_program = export_formats.Format(
            (), lambda *_: b"", lambda content: lambda x: network(x)[0] + wrong[: len(x)]
        )
        monkeypatch.setitem(export_formats.PROGRAMS, "torch", no_program)
    assert main(["export", str(result.out), "--format", name, "--out", str(tmp_path / "net")]) == 1
    error = capsys.readouterr().err
    assert "computes something else than the network: largest difference" in error and "not kept" in error
    assert list(tmp_path.iterdir()) == []


def test_nan_is_no_agreement(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module_cnn, "NETWORK", module_cnn.NETWORK.replace(".flatten(1))", ".flatten(1) * nan)")
    )
    monkeypatch.setattr(module_cnn, "IMPORTS", module_cnn.IMPORTS + "from math import nan\n")
    with pytest.raises(CheckFailedError, match="difference nan"):
        small(cnn_genotypes.DARTS_V1, tmp_path / "cell")


@pytest.mark.parametrize("name", ["torch", "module"])
def test_a_full_disk_leaves_nothing(training, tmp_path, monkeypatch, capsys, name):
    def full(descriptor):
        seen.append(descriptor)
        if len(seen) == (1 if name == "torch" else 2):  # a module's weights are written before it
            raise OSError(errno.ENOSPC, "No space left on device")

    seen = []
    monkeypatch.setattr(os, "fsync", full)
    no_program = export_formats.PROGRAMS["torch"]._replace(content=lambda *_: b"program")
    monkeypatch.setitem(export_formats.PROGRAMS, "torch", no_program)
    assert main(["export", str(training[0].out), "--format", name, "--out", str(tmp_path / "net")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def places(training, tmp_path):
    """Return folders and files by name."""
    search, used = tmp_path / "search", tmp_path / "used.py"
    search.mkdir()
    (search / "genotype.json").write_text(json.dumps(cnn_genotypes.DARTS_V1._asdict()))
    (search / "config.toml").write_text('command = "search cnn"\n\n[options]\nepochs = 1\n')
    (tmp_path / "weights").write_bytes(b"PK no archive")
    used.write_text("mine")
    return {"run": training[0].out, "search": search, "used": used, "here": tmp_path}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{here}/nothing"], "there is no file or folder .*/nothing, and no genotype .*give the folder"),
        (["Genotype(normal=[])"], "dartsfast: no genotype: expected the fields"),
        (["{here}"], "the folder .* holds no genotype.json"),
        (["{search}"], "torch is a format of trained networks, and .*search names a cell: train it"),
        (["DARTS_V2", "--format", "onnx"], "(onnx is a format of trained networks|needs onnx)"),
        (["rnn:ENAS"], "torch is a format of trained CNNs, and rnn:ENAS is recurrent: use --format module"),
        (["{here}/weights"], "weights holds no weights"),
        (["{here}/used.py", "--format", "module"], "used.py: the genotype is not JSON"),
        (["{run}", "--layers", "4"], "knows its own network: leave out --layers"),
        (["{run}", "--classes", "4"], "knows its own network: leave out --classes"),
        (["{run}", "--data", "imagefolder:/nowhere"], "no folder /nowhere/train.* give --data"),
        (["{run}", "--data", "photos"], "are not of this network: .*the classes of --data"),
        (
            ["DARTS_V2", "--format", "module", "--auxiliary"],
            "is a cell, without weights: leave out --auxiliary",
        ),
        (["rnn:ENAS", "--format", "module", "--layers", "4"], "without weights: leave out --layers"),
        (["{here}/no/x", "--format", "module"], "no genotype"),
        (["DARTS_V2", "--format", "module", "--image_size", "30"], "30x30 cannot be halved twice"),
        (["DARTS_V2", "--format", "module", "--out", "{here}"], "is a folder: name a file in it"),
        (["DARTS_V2", "--format", "module", "--layers", "0"], "layers must be above 0"),
        (["DARTS_V2", "--format", "module", "--classes", "-1"], "classes must not be negative"),
        (["DARTS_V2", "--format", "module", "--out", "{used}"], "used.py is there already: choose another"),
        (["DARTS_V2", "--format", "module", "--out", "{here}/used"], "used.py is there already"),
        (["DARTS_V2", "--format", "module", "--out", "x.onnx"], "--out x.onnx is of one format, and module"),
        (["{run}", "--format", "torch", "module", "--out", "x.py"], "torch, module asked for: leave out .py"),
        (["DARTS_V2", "--format", "module", "--out", "{here}/no/x"], "there is no folder .*/no: make it"),
    ],
)
def test_what_cannot_be_exported_is_refused(places, capsys, words, message):
    if any("photos" in word for word in words):
        pytest.importorskip("skimage")
        pytest.importorskip("sklearn")
    before = sorted(places["here"].rglob("*"))
    assert main(["export", *(word.format(**places) for word in words)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert sorted(places["here"].rglob("*")) == before and places["used"].read_text() == "mine"


@pytest.mark.parametrize("name", ["encoder.weight", "classifier.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_other_weights_are_refused(tmp_path, name, shape):
    torch.save({name: torch.zeros(shape)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="are not of this network|leave out --init_channels"):
        export_network(
            str(tmp_path / "other.pt"), ["module"], network=TestCNNConfig(init_channels=2, layers=2)
        )


def test_operations_of_ones_own_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(OPS, "mine", OPS["none"])
    monkeypatch.setitem(ACTIVATIONS, "mine", torch.sin)
    cnn = cnn_genotypes.DARTS_V1._replace(normal=[("none", 0), ("mine", 1)], normal_concat=[2])
    rnn = rnn_genotypes.Genotype([("mine", 0)], [1])
    for genotype, what in ((cnn, "operation"), (rnn, "activation")):
        with pytest.raises(InputError, match=f"the {what} 'mine' is of your own"):
            small(genotype, tmp_path / "cell")


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx and onnxscript, .*pip install 'dartsfast\[export\]'"):
        export_network("/nowhere", ["torch", "onnx"])


def test_names_where_none_is_given(training, tmp_path, monkeypatch, places):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "rnn:DARTS_V1", "--format", "module"]) == 0
    assert (tmp_path / "rnn_DARTS_V1.py").exists()  # a name that Python imports
    assert (
        main(["export", str(places["search"]), "--format", "module", "--layers=2", "--init_channels=2"]) == 0
    )
    assert "SepConv" in (tmp_path / "search.py").read_text()
    with pytest.raises(InputError, match="unknown format 'tflite': choose of torch, onnx, module"):
        export_network("DARTS_V2", ["tflite"])
