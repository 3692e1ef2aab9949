"""Whole searches: they learn, they leave their files, and a killed one goes on to the same bits."""

import copy
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from op_backends import instruction_set as instruction_set  # a fixture
from op_backends import native_only, needs_kernels
from small_data import text_folder
from small_runs import CONFIG, OPTIONS, cnn_options, rnn_options, same

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.errors import DivergedError, InputError
from dartsfast.genotypes import genotype_to_json
from dartsfast.runs.checkpoint import CURRENT, PREVIOUS, load_checkpoint, save_checkpoint
from dartsfast.runs.report import Report
from dartsfast.search import CNNConfig, RNNConfig, search_cnn, search_rnn
from dartsfast.search.cnn import CNNSearch
from dartsfast.search.rnn import RNNSearch

SEARCH = {"cnn": search_cnn, "rnn": search_rnn}


def scalar_epochs(out):
    """Return the steps that TensorBoard has of a run's training loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("train_loss")]


def command(kind, out, options=None, *flags):
    given = [f"--{name}={value}" for name, value in (options or {}).items()]
    return [sys.executable, "-m", "dartsfast", "search", kind, f"--out={out}", *given, *flags]


def kill_after(checkpoints, argv, out):
    """Run ``argv`` and send it SIGKILL some time after it has written ``checkpoints`` checkpoints."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen, last = 0, (out / CURRENT).stat().st_mtime_ns if (out / CURRENT).exists() else None
    while seen < checkpoints:
        assert process.poll() is None, process.communicate()[0]
        try:
            now = (out / CURRENT).stat().st_mtime_ns
        except FileNotFoundError:  # between its two renames
            now = last
        if now != last:
            seen, last = seen + 1, now
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_killed_search_goes_on_to_the_same_bits(tmp_path, kind, order):
    options = {**OPTIONS[kind](tmp_path), "order": order, "checkpoint_seconds": 0}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(kind, whole, options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kill_after(3, command(kind, killed, options), killed)  # within the first epoch
    resume = command(kind, killed, None, "--resume", "--checkpoint_seconds=0")
    kill_after(4, resume, killed)  # somewhere later
    done = subprocess.run(resume, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from epoch" in done.stdout
    same(load_checkpoint(whole, kind), load_checkpoint(killed, kind))
    assert (whole / "genotype.json").read_text() == (killed / "genotype.json").read_text()
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (whole, killed)]
    assert len(logs[0]) == len(logs[1]) == 2
    for a, b in zip(*logs, strict=True):
        same(json.loads(a), json.loads(b))


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_search_leaves_everything_it_promises(tmp_path, kind):
    out = tmp_path / "run"
    result = SEARCH[kind](CONFIG[kind](**OPTIONS[kind](tmp_path), out=str(out), order=2))
    assert result.out == out
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(math.isfinite(row["valid_loss"]) for row in rows)
    assert json.loads((out / "genotype.json").read_text()) == genotype_to_json(result.genotype)
    for name in ("cell", "alphas", "curves"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"{name}.svg").read_text()
    pictures = {file.name for file in (out / "pictures").iterdir()}
    assert {"alphas-001.png", "alphas-002.png", "cell-001.png"} <= pictures
    assert pictures <= {"alphas-001.png", "alphas-002.png", "cell-001.png", "cell-002.png"}
    assert result.lesson.startswith("after 2 epochs the search network ")
    assert scalar_epochs(out) == [1, 2]
    state = load_checkpoint(out, kind)
    for name, alpha in result.alphas.items():
        assert torch.equal(state["model"][name], alpha)
    with pytest.raises(InputError, match="holds a run already"):
        SEARCH[kind](CONFIG[kind](**OPTIONS[kind](tmp_path / "again"), out=str(out)))


def test_recompute_searches_the_same_bits(tmp_path, undrawn):
    options = cnn_options(tmp_path)
    runs = [
        search_cnn(CNNConfig(**options, out=str(tmp_path / m), memory=m, order=2))
        for m in ("store", "recompute")
    ]
    for name, alpha in runs[0].alphas.items():
        assert torch.equal(alpha, runs[1].alphas[name])


@pytest.mark.parametrize("pattern", ["ptb.{}.txt", "wiki.{}.tokens"])
def test_rnn_search_reads_the_usual_layouts(tmp_path, pattern, undrawn):
    options = {**rnn_options(tmp_path), "data": str(text_folder(tmp_path / "usual", pattern)), "epochs": 1}
    (row,) = search_rnn(RNNConfig(**options, out=str(tmp_path / "run"))).history
    assert math.isfinite(row["valid_ppl"])


def test_rnn_search_learns_a_small_language(tmp_path, undrawn):
    data = text_folder(tmp_path / "text", lines=1000)
    options = {"emsize": 16, "nhid": 16, "nhidlast": 16, "dropout": 0.1, "dropoutx": 0.1, "lr": 5.0}
    config = RNNConfig(data=str(data), batch_size=16, bptt=10, epochs=4, out=str(tmp_path / "run"), **options)
    perplexities = [row["train_ppl"] for row in search_rnn(config).history]
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < 9, perplexities  # of 13 words; knowing nothing but their frequencies gives 12.9


def photographs(tmp_path, **options):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    sizes = {"init_channels": 4, "layers": 2, "batch_size": 16, "max_images": 160, "epochs": 2}
    return CNNConfig(**{**sizes, **options}, arch_learning_rate=3e-3, out=str(tmp_path / "run"))


@needs_kernels
@native_only
@pytest.mark.parametrize("instruction_set", ["avx512", "avx2"], indirect=True)
def test_cnn_search_learns_to_tell_photographs(tmp_path, instruction_set, undrawn):
    """The portable kernels, which take minutes for it, have the same bits: the next test."""
    result = search_cnn(photographs(tmp_path, backend="cpu"))
    history = result.history
    assert history[-1]["valid_acc"] > 25, history  # percent; guesses give 10, give or take 2.4
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert "the search network tells 10 photographs apart" in result.lesson
    spread = [alpha.softmax(-1).max() - alpha.softmax(-1).min() for alpha in result.alphas.values()]
    assert max(spread) > 0.01


@needs_kernels
@native_only
def test_a_search_has_the_same_bits_on_every_instruction_set(tmp_path, instruction_set, undrawn):
    def searched(name):
        (tmp_path / name).mkdir()
        options = {"batch_size": 8, "max_images": 16, "epochs": 1, "backend": "cpu"}
        return search_cnn(photographs(tmp_path / name, **options))

    found, set_in_use = searched("here"), torch.ops.dartsfast.cpu_instruction_set()
    torch.ops.dartsfast.set_cpu_instruction_set("avx2")
    wanted = searched("avx2")
    torch.ops.dartsfast.set_cpu_instruction_set(set_in_use)
    for name, alpha in wanted.alphas.items():
        assert torch.equal(found.alphas[name], alpha)
    (ours,), (theirs,) = found.history, wanted.history
    for name in ("train_loss", "train_acc", "valid_loss", "valid_acc"):
        assert ours[name] == theirs[name]


def test_cnn_search_learns_on_the_reference_path(tmp_path, undrawn):
    history = search_cnn(photographs(tmp_path, backend="reference")).history
    assert history[-1]["valid_acc"] > 25, history


def test_a_run_of_an_earlier_version_counts_its_epochs_on(tmp_path, undrawn):
    new, old = tmp_path / "new", tmp_path / "old"
    search_cnn(CNNConfig(**cnn_options(tmp_path), out=str(new)))
    state = torch.load(new / PREVIOUS, weights_only=True)  # of the end of the first epoch
    (row,) = state["history"]
    row["epoch"] = 0
    old.mkdir()
    save_checkpoint(old, state)
    result = search_cnn(CNNConfig(), resume=old)
    assert [row["epoch"] for row in result.history] == [1, 2]
    rows = [json.loads(line) for line in (old / "log.jsonl").read_text().splitlines()]
    assert rows == result.history and rows[0] == {**row, "epoch": 1}
    assert scalar_epochs(old) == [2]


def test_the_seconds_of_an_epoch_are_all_of_it(tmp_path, monkeypatch, undrawn):
    slow = {"_validate": CNNSearch._validate, "draw": Report.draw}

    def later(name):
        def run(*args, **kwargs):
            time.sleep(0.5)
            return slow[name](*args, **kwargs)

        return run

    monkeypatch.setattr(CNNSearch, "_validate", later("_validate"))
    monkeypatch.setattr(Report, "draw", later("draw"))
    began = time.perf_counter()
    result = search_cnn(CNNConfig(**cnn_options(tmp_path), out=str(tmp_path / "run")))
    took = time.perf_counter() - began
    assert all(row["seconds"] >= 1.0 for row in result.history)
    assert sum(row["seconds"] for row in result.history) <= took


def test_cosine_schedule_is_the_originals(tmp_path):
    options = {**cnn_options(tmp_path), "epochs": 5}
    search = CNNSearch(CNNConfig(**options))
    rates = []
    for _ in range(5):
        rates.append(search.scheduler.get_last_lr()[0])
        search.optimizer.step()
        search.scheduler.step()
    expected = [0.001 + (0.025 - 0.001) * (1 + math.cos(math.pi * e / 5)) / 2 for e in range(5)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_a_recorded_run_goes_on_without_recordings(tmp_path):
    """Adam of a run with CUDA graphs counts its steps on the device: elsewhere it must not."""
    search = CNNSearch(CNNConfig(**cnn_options(tmp_path)))
    for alpha in search.model.arch_parameters():
        alpha.grad = torch.ones_like(alpha)
    search.architect.optimizer.step()
    state = copy.deepcopy(search.state())
    state["arch_optimizer"]["param_groups"][0]["capturable"] = True
    search.load_state(state)
    search.architect.optimizer.step()
    assert not search.architect.optimizer.param_groups[0]["capturable"]


def test_the_alphas_see_the_other_half(tmp_path):
    search = CNNSearch(CNNConfig(**cnn_options(tmp_path)))
    assert len(search.train) == len(search.valid) == 3
    seen = {name: [] for name in ("train", "valid")}
    for name in seen:
        source = getattr(search, name).source
        seen[name] = [bytes(image.numpy()) for image in source.gather(torch.arange(len(source)))]
    assert not set(seen["train"]) & set(seen["valid"])


def test_compatible_valid_iterator_starts_anew_every_iteration(tmp_path):
    options = cnn_options(tmp_path)
    persistent = CNNSearch(CNNConfig(**options))
    compat = CNNSearch(CNNConfig(**options, compat_valid_iter=True))
    batches = zip(persistent._valid_batches(), compat._valid_batches(), strict=False)
    for position, ((x, _), (x_compat, _)) in zip(range(5), batches, strict=False):
        assert torch.equal(x, persistent.valid.batch(*divmod(position, 3))[0])
        assert torch.equal(x_compat, compat.valid.batch(position, 0)[0])


def test_half_length_batches_take_half_the_step(tmp_path):
    search = RNNSearch(RNNConfig(**{**rnn_options(tmp_path), "bptt": 2}))
    lengths, rates, before = set(), {}, 0
    original = search.architect.step

    def step(h, x, y, *rest):
        rates[len(x)] = search.optimizer.param_groups[0]["lr"]
        return original(h, x, y, *rest)

    search.architect.step = step
    for iteration in search.iterations():
        lengths.add(iteration.done - before)
        before = iteration.done
    assert lengths == {1, 2}
    assert rates == {1: 10.0, 2: 20.0}
    assert search.optimizer.param_groups[0]["lr"] == 20.0


def test_a_diverging_search_stops_and_keeps_its_checkpoint(tmp_path, undrawn):
    options = {**cnn_options(tmp_path), "learning_rate": 1e30, "grad_clip": 1e30}
    with pytest.raises(DivergedError, match="lower the learning rate|Lower the learning rate"):
        search_cnn(CNNConfig(**options, out=str(tmp_path / "run"), checkpoint_seconds=0))
    state = load_checkpoint(tmp_path / "run", "cnn")
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_spoilt_checkpoint_is_refused_and_the_one_before_used(tmp_path, undrawn):
    out = tmp_path / "run"
    search_cnn(CNNConfig(**cnn_options(tmp_path), out=str(out)))
    before = torch.load(out / PREVIOUS, weights_only=True)
    whole = (out / CURRENT).read_bytes()
    flipped = bytearray(whole)
    alphas = torch.load(out / CURRENT, weights_only=True)["model"]["alphas_normal"]
    flipped[whole.index(alphas.numpy().tobytes())] ^= 1
    for spoilt in (whole[: len(whole) // 2], b"", b"something else", whole[:-100], bytes(flipped)):
        (out / CURRENT).write_bytes(spoilt)
        with pytest.warns(UserWarning, match="damaged.*the one before"):
            state = load_checkpoint(out, "cnn")
        same(before, state)
    torch.save({"state_dict": {}}, out / CURRENT)
    with pytest.warns(UserWarning, match="not written by a run of dartsfast"):
        load_checkpoint(out, "cnn")
    with pytest.raises(InputError, match="is of a `search cnn`, not of a `search rnn`"):
        load_checkpoint(out / PREVIOUS, "rnn")
    (out / PREVIOUS).unlink()
    with pytest.raises(InputError, match="not written by a run of dartsfast"):
        load_checkpoint(out, "cnn")
    with pytest.raises(InputError, match="no checkpoint in"):
        load_checkpoint(tmp_path, "cnn")


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    save_checkpoint(tmp_path, {"kind": Evil()})
    with pytest.raises(InputError, match="cannot read"):
        load_checkpoint(tmp_path, "cnn")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("cnn", {"batch_size": 10}, "batch size 10 does not fit the 9 images"),
        ("cnn", {"batch_size": 0}, "batch_size must be above 0, got 0"),
        ("cnn", {"epochs": 0}, "epochs must be above 0, got 0"),
        ("cnn", {"momentum": float("nan")}, "momentum must be a finite number, got nan"),
        ("cnn", {"seed": 10**23}, "seed must fit 64 bits"),
        ("cnn", {"image_size": 4}, "from 8 on"),
        ("rnn", {"batch_size": 1}, "batch_size must be at least 2"),
        ("cnn", {"weight_decay": -1.0}, "weight_decay must not be negative"),
        ("cnn", {"order": 3}, "order must be one of 1, 2, got 3"),
        ("cnn", {"image_size": 10}, "images of 10x10 cannot be halved twice"),
        ("cnn", {"data": "imagefolder:/nowhere"}, "/nowhere"),
        ("cnn", {"data": "mnist"}, "mnist"),
        ("cnn", {"backend": "triton"}, "backend 'triton' is not available"),
        (
            "cnn",
            {"backend": "reference", "storage_dtype": "bfloat16"},
            "needs the backend cpu, cuda or triton",
        ),
        ("cnn", {"storage_dtype": "int8"}, "storage_dtype must be one of float32, bfloat16, float16"),
        ("cnn", {"device": "cuda:7"}, "CUDA devices"),
        ("cnn", {"device": "tpu9"}, "tpu9"),
        ("cnn", {"train_portion": 1.5}, "train_portion"),
        ("rnn", {"data": "/nowhere"}, "/nowhere"),
        ("rnn", {"batch_size": 400}, "too few for 400 columns"),
        ("rnn", {"nhid": 9}, "must be equal"),
        ("rnn", {"dropout": 1.0}, "dropout must be below 1"),
        ("rnn", {"small_batch_size": 2}, "small_batch_size must be -1"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path, kind, changes, message, undrawn):
    out = tmp_path / "run"
    options = {**OPTIONS[kind](tmp_path), "out": str(out), **changes}
    with pytest.raises(InputError, match=message):
        SEARCH[kind](CONFIG[kind](**options))
    assert not out.exists()


def test_resuming_keeps_the_runs_own_options(tmp_path, undrawn):
    out = tmp_path / "run"
    config = CNNConfig(**cnn_options(tmp_path), out=str(out))
    search_cnn(config)
    again = search_cnn(dataclasses.replace(config, epochs=7, batch_size=1), resume=out)
    assert len(again.history) == 2
