"""Genotypes in every form that people hold: the good ones work everywhere, the others are named."""

import json
import os
from collections import namedtuple

import numpy as np
import pytest
import torch

from dartsfast.cli import main
from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.cnn.model import NetworkCIFAR, NetworkImageNet
from dartsfast.cnn.model_search import Network
from dartsfast.cnn.operations import OPS
from dartsfast.drawing import draw_genotype
from dartsfast.errors import InputError
from dartsfast.genotypes import (
    CNN,
    RNN,
    as_genotype,
    genotype_from_json,
    genotype_to_json,
    picture_name,
    published,
    resolve_genotype,
)
from dartsfast.rnn import genotypes as rnn_genotypes
from dartsfast.rnn.model import DARTSCell, RNNModel
from dartsfast.rnn.model_search import RNNModelSearch

V2, ENAS = cnn_genotypes.DARTS_V2, rnn_genotypes.ENAS
LOG = "2018-11-14 04:07:39,713 genotype = "
FORMS = {
    "itself": lambda g: g,
    "printed": repr,
    "log line": lambda g: LOG + repr(g) + "\n",
    "source": lambda g: "DARTS = " + repr(g).replace("=", " = ").replace("(", "(\n  "),
    "tuples": lambda g: repr(g).replace("[", "(").replace("]", ",)"),
    "without names": lambda g: f"genotypes.Genotype{tuple(g)!r}",
    "dict": lambda g: json.loads(json.dumps(genotype_to_json(g))),
    "JSON": lambda g: json.dumps(genotype_to_json(g)),
    "named tuple as JSON": lambda g: json.loads(json.dumps(genotype_to_json(g) and [*map(list, g)])),
    "nested lists": lambda g: type(g)(*([list(e) if isinstance(e, tuple) else e for e in f] for f in g)),
    "other code's": lambda g: namedtuple("Genotype", g._fields)(*g),
    "NumPy indices": lambda g: type(g)(
        *([(e[0], np.int64(e[1])) if isinstance(e, tuple) else np.int64(e) for e in f] for f in g)
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["cnn:AmoebaNet", "cnn:DARTS_V2", "rnn:ENAS", "rnn:DARTS_V1"])
def test_every_form_is_the_same_genotype(form, name):
    genotype = published()[name]
    found = as_genotype(FORMS[form](genotype))
    assert type(found) is type(genotype)
    assert genotype_to_json(found) == genotype_to_json(genotype)
    json.dumps(genotype_to_json(found))
    assert all(type(index) is int for _, index in found[0])


@pytest.mark.parametrize("form", ["printed", "dict", "named tuple as JSON", "nested lists"])
def test_networks_take_every_form(form):
    def outputs(cells, recurrent):
        torch.manual_seed(0)
        image = NetworkCIFAR(4, 10, 2, False, cells).eval()(torch.randn(2, 3, 8, 8))[0]
        model = RNNModel(9, 4, 4, 4, genotype=recurrent).eval()
        return image, model(torch.arange(6).view(3, 2), model.init_hidden(2))[0]

    expected = outputs(V2, ENAS)
    for found, known in zip(outputs(FORMS[form](V2), FORMS[form](ENAS)), expected, strict=True):
        assert torch.equal(found, known)


def test_names_are_of_the_kind_that_is_needed():
    assert as_genotype("DARTS_V1") == as_genotype("DARTS_V1", CNN) == cnn_genotypes.DARTS_V1
    assert as_genotype("DARTS_V1", RNN) == rnn_genotypes.DARTS_V1
    assert as_genotype("rnn:DARTS_V1") == rnn_genotypes.DARTS_V1


def broken(**changes):
    return V2._replace(**changes)


TWO = [("skip_connect", 0), ("skip_connect", 1)]
BAD = {
    "swapped": (broken(normal=[(0, "skip_connect"), TWO[1]]), r"cell entry 0 .*swapped.*\('skip_c.*, 0\)"),
    "odd": (broken(reduce=TWO[:1]), "edges of the reduction cell .*two.*got 1"),
    "index": (broken(normal=[TWO[0], ("skip_connect", 2)]), "normal cell entry 1 .*input 2.* 0 to 1"),
    "negative": (broken(normal=[TWO[0], ("skip_connect", -1)]), "input -1.* 0 to 1"),
    "bool": (broken(normal=[TWO[0], ("skip_connect", True)]), "input True"),
    "float": (broken(normal=[TWO[0], ("skip_connect", 1.0)]), "input 1.0"),
    "huge": (broken(normal=[TWO[0], ("skip_connect", 10**5000)]), "a huge int"),
    "no name": (broken(normal=[TWO[0], (None, 1)]), "operation's name must be a string"),
    "a triple": (broken(normal=[TWO[0], ("skip_connect", 1, 2)]), "entry 1 .*pair"),
    "a string for a pair": (broken(normal=["skip_connect", "skip_connect"]), "entry 0 .*pair"),
    "empty concat": (broken(normal_concat=[]), r"concat of the normal cell is \[\].*from 2 to 5"),
    "concat": (broken(reduce_concat=[2, 6]), "concat of the reduction cell names node 6.* 2 to 5"),
    "concat of bools": (broken(reduce_concat=[True]), "names node True"),
    "concat of text": (broken(reduce_concat="2345"), "concat of the reduction cell is '2345'"),
    "one cell": (V2.normal, "expected the fields normal, .* or recurrent, concat"),
    "fields": ({**genotype_to_json(V2), "steps": 4}, "expected the fields"),
    "nothing": (None, "expected the fields .*got None"),
    "unknown name": ("DARTS_V9", "no genotype 'DARTS_V9'.*cnn:DARTS_V2"),
    "long text": ("x" * 5000, "no genotype 'xxx"),
    "not JSON": ("{'normal': 1}", "not JSON"),
    "NaN": (json.dumps(genotype_to_json(broken(normal=[("skip_connect", float("nan"))] * 2))), "input nan"),
    "twice": ('{"recurrent": [], "recurrent": [], "concat": []}', "'recurrent' twice"),
    "twice in Python": ("Genotype(recurrent=[], recurrent=[], concat=[1])", "'recurrent' twice"),
    "many digits": ('{"recurrent": [["tanh", ' + "9" * 5000 + "]]}", "cannot be read"),
    "deep JSON": ("[" * 49_000 + "]" * 49_000, "cannot be read"),
    "deep Python": ("Genotype(" + "[" * 40_000, "cannot be read"),
    "deep minus": ("Genotype(" + "-" * 40_000 + "1)", "cannot be read|holds"),
    "too long": ("Genotype(" + " " * 200_000 + ")", "200010 characters"),
    "a call": (repr(V2).replace("[2, 3, 4, 5]", "print('ran')"), r"holds \"print\('ran'\)\""),
    "a huge range": ("Genotype(recurrent=[('tanh', 0)], concat=range(10**9))", "holds '10"),
    "a large range": ("Genotype(recurrent=[('tanh', 0)], concat=range(1000000000))", "holds 'range"),
    "two": (repr(V2) + " " + repr(V2), "cannot be read"),
    "and more": (repr(V2) + ".normal", "give that alone"),
    "half a text": (repr(V2)[:100], "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_genotypes_are_named_everywhere(case, tmp_path):
    value, message = BAD[case]
    for use in (
        as_genotype,
        lambda g: NetworkCIFAR(4, 10, 2, False, g),
        lambda g: NetworkImageNet(4, 10, 2, False, g),
        lambda g: draw_genotype(g, tmp_path / "cell"),
    ):
        with pytest.raises(InputError, match=message):
            use(value)
    if isinstance(value, str):
        with pytest.raises(InputError, match=message):
            resolve_genotype(value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            rnn_genotypes.Genotype([("tanh", 0), ("relu", 2)], [1]),
            "cell entry 1 .*state 2.* 0 to 1",
        ),
        (rnn_genotypes.Genotype([(0, "tanh")], [1]), "recurrent cell entry 0 .*swapped"),
        (rnn_genotypes.Genotype([], [0]), r"edges of the recurrent cell are \[\]"),
        (rnn_genotypes.Genotype([("tanh", 0)], []), r"concat of the recurrent cell is \[\]"),
        (rnn_genotypes.Genotype([("selu", 0)], [1]), "unknown activation 'selu', known are tanh, relu"),
        (V2, r"CNNs \(fields normal, .*RNNs \(fields recurrent, concat\): name another"),
    ],
)
def test_bad_recurrent_genotypes_are_named(value, message):
    for build in (lambda: DARTSCell(4, 4, 0, 0, value), lambda: RNNModel(9, 4, 4, 4, genotype=value)):
        with pytest.raises(InputError, match=message):
            build()


def test_recurrent_genotypes_do_not_make_images():
    with pytest.raises(InputError, match=r"RNNs \(fields recurrent, concat\) is none of CNNs \(fields"):
        NetworkCIFAR(4, 10, 2, False, ENAS)


def test_operations_of_ones_own_work_where_they_are_known(monkeypatch, tmp_path):
    cells = cnn_genotypes.Genotype([("conv_1x1", 0), ("conv_1x1", 1)], [2], TWO, [2])
    draw_genotype(cells, tmp_path / "cell")
    with pytest.raises(InputError, match=r"unknown operation 'conv_1x1', known are none.*draw_genotype"):
        resolve_genotype(repr(cells))
    with pytest.raises(InputError, match=r"unknown activation 'none', known are tanh"):
        resolve_genotype("Genotype(recurrent=[('none', 0)], concat=[1])")
    monkeypatch.setitem(OPS, "conv_1x1", lambda C, stride, affine: torch.nn.Conv2d(C, C, 1, stride))
    assert resolve_genotype(repr(cells)) == cells
    NetworkCIFAR(4, 10, 2, False, cells)


def test_draw_takes_printed_genotypes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for text in (repr(V2), LOG + repr(rnn_genotypes.DARTS_V1)):
        assert main(["draw", text]) == 0
        assert capsys.readouterr().out.split() == ["genotype.png", "genotype.svg"]
    assert main(["draw", repr(V2), "--out", "cell.pdf"]) == 0
    assert (tmp_path / "cell.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "cell.pdf.png").exists()
    for text in ("x" * 5000, "Genotype(normal=[])", "nul\0"):
        assert main(["draw", text]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_pictures_are_named_after_what_they_show(tmp_path):
    names = {
        "rnn:DARTS_V2": "rnn-DARTS_V2",
        "runs/a/": "runs/a",
        "a.json": "a",
        ".": "genotype",
        "../": "genotype",
        repr(V2): "genotype",
        json.dumps(genotype_to_json(ENAS)): "genotype",
    }
    assert {spec: picture_name(spec) for spec in names} == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty text"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"[" * 60_000, "cannot be read"),
        (b"{", "not JSON"),
        (b"{}", "expected the fields"),
        (b"12", "expected the fields .*got 12"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    (tmp_path / "genotype.json").write_bytes(content)
    with pytest.raises(InputError, match=f"genotype.json.*{message}"):
        resolve_genotype(str(tmp_path))


def test_files_of_every_form_are_read(tmp_path):
    path = tmp_path / "found"
    for text in (repr(V2), json.dumps(genotype_to_json(V2)), json.dumps(V2), LOG + repr(V2)):
        for mark in (b"", b"\xef\xbb\xbf"):
            path.write_bytes(mark + text.encode())
            assert genotype_to_json(resolve_genotype(str(path))) == genotype_to_json(V2)


NETWORKS = {
    "cnn": lambda: Network(2, 3, 3, None),
    "cnn of a part of the nodes": lambda: Network(2, 3, 3, None, steps=3, multiplier=1),
    "rnn": lambda: RNNModelSearch(9, 4, 4, 4),
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_a_searched_genotype_comes_back_from_json_as_it_was(build, tmp_path):
    genotype = build().genotype()
    fields = genotype_to_json(genotype)
    (tmp_path / "genotype.json").write_text(json.dumps(fields, indent=1))
    for found in (
        genotype_from_json(fields),
        resolve_genotype(str(tmp_path)),
        resolve_genotype(str(tmp_path / "genotype.json")),
        as_genotype(json.dumps(fields)),
    ):
        assert found == genotype and repr(found) == repr(genotype)


def test_a_concat_with_gaps_comes_back_from_json_as_a_list():
    for concat in ([4, 2, 3], [2, 4], [3, 3], [5, 4]):
        cells = broken(normal_concat=concat)
        assert genotype_from_json(genotype_to_json(cells)).normal_concat == concat


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="holds no genotype.json"):
        resolve_genotype(str(tmp_path))
    os.mkfifo(tmp_path / "genotype.json")
    with pytest.raises(InputError, match="genotype.json is a FIFO"):
        resolve_genotype(str(tmp_path))
    with pytest.raises(InputError, match="/dev/zero is a device"):
        resolve_genotype("/dev/zero")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot read .*lost"):
        resolve_genotype(str(tmp_path / "lost"))
