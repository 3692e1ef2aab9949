"""The command line: its words, its exit codes, the original's flags."""

import json
import re
import subprocess
import sys

import pytest

from dartsfast.cli import _parser, main
from dartsfast.errors import InputError
from dartsfast.genotypes import genotype_from_json, genotype_to_json, published, resolve_genotype
from dartsfast.search.config import CNNConfig, RNNConfig


def test_defaults_are_the_originals():
    cnn, rnn = CNNConfig(), RNNConfig()
    assert (cnn.batch_size, cnn.epochs, cnn.learning_rate, cnn.learning_rate_min) == (64, 50, 0.025, 0.001)
    assert (cnn.momentum, cnn.weight_decay, cnn.grad_clip, cnn.train_portion) == (0.9, 3e-4, 5.0, 0.5)
    assert (cnn.init_channels, cnn.layers, cnn.seed, cnn.report_freq) == (16, 8, 2, 50)
    assert (cnn.arch_learning_rate, cnn.arch_weight_decay, cnn.cutout_length) == (3e-4, 1e-3, 16)
    assert (rnn.batch_size, rnn.epochs, rnn.bptt, rnn.lr, rnn.clip) == (256, 50, 35, 20.0, 0.25)
    assert (rnn.emsize, rnn.nhid, rnn.nhidlast, rnn.beta, rnn.wdecay) == (300, 300, 300, 1e-3, 5e-7)
    dropouts = (rnn.dropout, rnn.dropouth, rnn.dropoutx, rnn.dropouti, rnn.dropoute)
    assert dropouts == (0.75, 0.25, 0.75, 0.2, 0.0)
    assert (rnn.arch_lr, rnn.arch_wdecay, rnn.seed) == (3e-3, 1e-3, 3)
    assert cnn.order == rnn.order == 1


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (
            "cnn",
            "--data photos --batch_size 64 --learning_rate 0.025 --learning_rate_min 0.001 --momentum 0.9 "
            "--weight_decay 3e-4 --report_freq 50 --gpu 0 --epochs 50 --init_channels 16 --layers 8 "
            "--model_path saved_models --cutout --cutout_length 16 --drop_path_prob 0.3 --save EXP --seed 2 "
            "--grad_clip 5 --train_portion 0.5 --unrolled --arch_learning_rate 3e-4 --arch_weight_decay 1e-3",
        ),
        (
            "rnn",
            "--data pydoc --emsize 300 --nhid 300 --nhidlast 300 --lr 20 --clip 0.25 --epochs 50 "
            "--batch_size 256 --bptt 35 --dropout 0.75 --dropouth 0.25 --dropoutx 0.75 --dropouti 0.2 "
            "--dropoute 0 --seed 3 --nonmono 5 --cuda --log-interval 50 --save EXP --alpha 0 --beta 1e-3 "
            "--wdecay 5e-7 --continue_train --small_batch_size -1 --max_seq_len_delta 20 --single_gpu "
            "--gpu 0 --unrolled --arch_wdecay 1e-3 --arch_lr 3e-3",
        ),
    ],
)
def test_the_originals_flags_are_known(kind, line):
    args = _parser().parse_args(["search", kind, *line.split()])
    assert args.order == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["search", "cnn", "--data", "cifar10:/nowhere"], "/nowhere"),
        (["search", "cnn", "--backend", "cuda"], "backend 'cuda' is not available"),
        (["search", "cnn", "--resume"], "needs the folder of the run"),
        (["search", "cnn", "--resume", "/nowhere", "--epochs", "3"], "leave out --epochs"),
        (["search", "rnn", "--resume", "/nowhere"], "no checkpoint at /nowhere"),
        (["draw", "DARTS_V9"], "no genotype 'DARTS_V9'.*cnn:DARTS_V2.*rnn:ENAS"),
    ],
)
def test_bad_input_is_one_line_and_status_two(capsys, argv, message):
    if argv[:2] == ["search", "cnn"]:
        pytest.importorskip("torchvision")
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error


def test_draw_and_doctor(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "genotype.json").write_text(json.dumps(genotype_to_json(published()["rnn:ENAS"])))
    for spec in ("DARTS_V2", "rnn:DARTS_V1", str(tmp_path), str(tmp_path / "genotype.json")):
        assert main(["draw", spec, "--out", str(tmp_path / "picture")]) == 0
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "picture.png").unlink()
    capsys.readouterr()
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "triton", "backend reference  yes", "backend cuda       no: ", "auto on cpu"):
        assert word in text


def test_genotypes_survive_json_and_strangers_do_not(tmp_path):
    for genotype in published().values():
        back = genotype_from_json(json.loads(json.dumps(genotype_to_json(genotype))))
        assert genotype_to_json(back) == genotype_to_json(genotype)
        assert type(back) is type(genotype)
    assert resolve_genotype("ENAS") == published()["rnn:ENAS"]
    (tmp_path / "genotype.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        resolve_genotype(str(tmp_path))
    with pytest.raises(InputError, match="expected the fields normal"):
        genotype_from_json({"normal": []})


def test_the_core_imports_nothing_that_is_optional():
    code = (
        "import sys, dartsfast, dartsfast.cli, dartsfast.cnn.architect, dartsfast.rnn.architect\n"
        "import dartsfast.cnn.model, dartsfast.cnn.visualize, dartsfast.rnn.data, dartsfast.doctor\n"
        "extras = {'torchvision', 'rich', 'matplotlib', 'tensorboard', 'skimage', 'sklearn', 'triton'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
