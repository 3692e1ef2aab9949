"""The command line: its words, its exit codes, the original's flags."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
from small_data import text_folder

from dartsfast import __version__ as dartsfast_version
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
        (["search", "rnn", "--resume", "/a", "--out", "/b"], "stays in its folder: name one of /a, /b"),
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


COMMANDS = [
    [], ["search"], ["search", "cnn"], ["search", "rnn"], ["compare"], ["compare", "cnn"], ["compare", "rnn"],
    ["explain"], ["explain", "cnn"], ["explain", "rnn"], ["export"], ["draw"], ["doctor"], ["runs"],
    ["report"], ["compare-runs"],
]  # fmt: skip


def python(code, *args, **options):
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, encoding="utf-8", **options
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def dartsfast(*args, **environment):
    command = [sys.executable, "-m", "dartsfast", *args]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment})


def test_help_and_version_need_no_torch():
    code = (
        "import sys\n"
        "from dartsfast.cli import main\n"
        f"for words in {[*([*c, '--help'] for c in COMMANDS), ['--version'], ['search', 'cnn', '--nope']]}:\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit as left:\n"
        "        print('status', left.code)\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'rich'} & set(sys.modules)))\n"
    )
    lines = python(code).stdout.splitlines()
    assert lines[-1] == "[]"
    statuses = [line for line in lines if line.startswith("status")]
    assert statuses == ["status 0"] * (len(COMMANDS) + 1) + ["status 2"]
    assert f"dartsfast {dartsfast_version}" in lines


@pytest.mark.parametrize("kind", ["cnn", "rnn"])
def test_help_shows_every_option_once_and_in_its_group(capsys, kind):
    with pytest.raises(SystemExit):
        main(["search", kind, "--help"])
    text = capsys.readouterr().out
    config = {"cnn": CNNConfig, "rnn": RNNConfig}[kind]
    parts = re.split(r"^(data|network|optimisation|method|run|old flags without effect):$", text, flags=re.M)
    groups = dict(zip(parts[1::2], parts[2::2], strict=True))
    for field in dataclasses.fields(config):
        flag = rf"^  --{field.name}\b"
        assert len(re.findall(flag, text, re.M)) == 1
        assert re.search(flag, groups[field.metadata["group"]], re.M)
        if "_" in field.name:
            assert f"--{field.name.replace('_', '-')}" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    words = " ".join(text.split())
    forms = {
        "cnn": ["photos:", "cifar10:DIR", "cifar100:DIR", "fashion-mnist:DIR", "imagefolder:DIR"],
        "rnn": ["pydoc:", "train.txt", "ptb.train.txt", "wiki.train.tokens"],
    }
    assert all(form in words for form in forms[kind])


@pytest.mark.parametrize("kind", ["cnn", "rnn"])
def test_hyphens_do_for_underscores(kind):
    given = _parser().parse_args(["search", kind, "--batch-size", "7", "--checkpoint-seconds=3"])
    assert (given.batch_size, given.checkpoint_seconds) == (7, 3.0)


@pytest.mark.parametrize("words", COMMANDS)
def test_an_unknown_option_shows_the_commands_own_usage(capsys, words):
    given = {"draw": ["DARTS_V2"], "export": ["DARTS_V2"], "report": ["."], "compare-runs": ["."]}
    needed = given.get(" ".join(words), [])
    with pytest.raises(SystemExit) as left:
        main([*words, *needed, "--nope", "3"])
    error = capsys.readouterr().err
    assert left.value.code == 2
    prog = " ".join(["dartsfast", *words])
    assert error.startswith(f"usage: {prog} ") and f"\n{prog}: error: " in error


def test_a_misspelt_option_is_told_its_neighbour(capsys):
    with pytest.raises(SystemExit):
        main(["search", "cnn", "--bach_size=3"])
    assert "unrecognized arguments: --bach_size=3 (did you mean --batch_size?)" in capsys.readouterr().err


def test_doctor_speaks_json(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [f"{name:<{max(map(len, found))}}  {value}" for name, value in found.items()] == lines
    assert found["auto on cpu"] in ("cpu", "reference")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["doctor"], ["search", "cnn", "--help"], ["--version"]])
def test_a_reader_that_leaves_is_no_error(words, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "dartsfast", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    # argparse is silent where the help cannot be written at once.
    assert done.returncode in ((141,) if words == ["doctor"] or not unbuffered else (0, 141))
    assert done.stderr == ""


def test_a_search_whose_reader_leaves_saves_and_says_how_to_go_on(tmp_path):
    for extra in ("rich", "tensorboard", "matplotlib"):
        pytest.importorskip(extra)
    words = [f"--data={text_folder(tmp_path / 'text')}", f"--out={tmp_path / 'run'}", "--log_interval=1"]
    sizes = ["--emsize=8", "--nhid=8", "--nhidlast=8", "--batch_size=4", "--lr=1"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "dartsfast", "search", "rnn", *words, *sizes],
        stdout=writing, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 141, done.stderr
    assert done.stderr.startswith("dartsfast: stopped by SIGPIPE in epoch 1, iteration 0; the checkpoint is")
    assert done.stderr.endswith(f"Go on with: dartsfast search rnn --resume {tmp_path / 'run'}\n")


def test_ctrl_c_during_the_imports_is_no_traceback():
    code = """if True:
        import signal, sys
        from dartsfast.cli import main

        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background

        class Impatient:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    signal.raise_signal(signal.SIGINT)

        sys.meta_path.insert(0, Impatient())
        sys.exit(main(sys.argv[1:]))
    """
    for words in (["search", "cnn"], ["compare", "rnn"], ["doctor"]):
        done = python(code, *words)
        assert done.returncode == 130
        assert done.stderr.startswith("dartsfast: interrupted") and done.stderr.count("\n") == 1


def test_quiet_and_verbose(tmp_path, capsys):
    for extra in ("rich", "tensorboard", "matplotlib"):
        pytest.importorskip(extra)
    text = text_folder(tmp_path / "text")
    sizes = ["--emsize=8", "--nhid=8", "--nhidlast=8", "--batch_size=4", "--lr=1", "--epochs=1", "--bptt=60"]
    said = {}
    for much in ("--quiet", "--verbose", "--checkpoint_seconds=60"):
        out = tmp_path / much
        words = ["search", "rnn", f"--data={text}", f"--out={out}", "--log_interval=1", *sizes, much]
        assert main(words) == 0
        said[much] = capsys.readouterr()
    quiet, verbose, usual = (said[much].out.splitlines() for much in said)
    assert quiet == usual[-1:] and quiet[0].startswith("after 1 epoch the search network")
    phases = [line for line in verbose if line not in usual and line.startswith("  training ")]
    assert len(phases) == 1 and re.fullmatch(
        r"  training [\d.e-]+ s, validating [\d.e-]+ s, drawing [\d.e-]+ s; [\d.]+ it/s", phases[0]
    )
    assert len(verbose) == len(usual) + 1 and [s.err for s in said.values()] == ["", "", ""]
    configs = {(tmp_path / much / "config.toml").read_text() for much in said}
    assert len(configs) == 1, "how much is said is no option of the run"
    assert main(["search", "rnn", "--resume", str(tmp_path / "--quiet"), "--verbose"]) == 0
    with pytest.raises(SystemExit):
        main(["search", "rnn", "--quiet", "--verbose"])


def test_quiet_errors_are_said(tmp_path, capsys):
    pytest.importorskip("rich")
    assert main(["search", "rnn", "--quiet", "--resume", str(tmp_path)]) == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_any_name_under_an_ascii_locale(tmp_path):
    for extra in ("rich", "tensorboard", "matplotlib"):
        pytest.importorskip(extra)
    text = text_folder(tmp_path / "text")
    out = tmp_path / "Größe-π"
    sizes = ["--emsize=8", "--nhid=8", "--nhidlast=8", "--batch_size=4", "--lr=1", "--epochs=1"]
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = dartsfast("search", "rnn", f"--data={text}", f"--out={out}", *sizes, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert b"after 1 epoch the search network" in done.stdout and rb"Gr\xf6\xdfe-\u03c0" in done.stdout
    assert json.loads((out / "log.jsonl").read_text(encoding="utf-8"))["epoch"] == 1
    done = dartsfast("draw", out, "--out", tmp_path / "é", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "é.png").exists()


def test_a_name_that_no_locale_can_show_is_refused_before_any_work(tmp_path):
    pytest.importorskip("rich")
    out = os.fsencode(tmp_path) + b"/\xff"
    for words in (["--out", out], ["--resume", out]):
        done = dartsfast("search", "rnn", *words)
        assert done.returncode == 2
        assert rb"\udcff' has bytes that are no characters in this locale" in done.stderr
    assert not os.path.exists(out)
    done = dartsfast("draw", "DARTS_V2", "--out", out)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(out + b".png") and done.stdout.endswith(b"\\udcff.svg\n")


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


def test_a_program_that_has_loaded_torch_keeps_its_environment():
    program = (
        "import os, torch; from dartsfast import cli; before = {**os.environ}; cli.main(['draw', '?']); "
        "print(before == os.environ)"
    )
    assert python(program).stdout == "True\n"


@pytest.mark.parametrize(
    ("given", "policy"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "9"}, None)],
)
def test_threads_sleep_where_they_wait_unless_told_otherwise(given, policy):
    """As OpenMP itself says it, which shows what it read when torch loaded it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    program = (
        "import os; from dartsfast import cli; cli.main(['doctor']); print(os.getenv('OMP_WAIT_POLICY'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env={**environment, "OMP_DISPLAY_ENV": "TRUE", **given},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == str(policy)
    if policy is not None:
        assert f"OMP_WAIT_POLICY = '{policy.upper()}'" in result.stderr
