"""Ctrl-C, SIGTERM and SIGHUP: a checkpoint, the way to go on, the same bits."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from small_runs import CONFIG, OPTIONS, same

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.bilevel.guard import interruptible, preserved
from dartsfast.errors import RunStopped
from dartsfast.runs import interrupts
from dartsfast.runs.checkpoint import CURRENT, load_checkpoint
from dartsfast.runs.interrupts import SIGNALS, Stop, stop_signals
from dartsfast.runs.report import Report
from dartsfast.search import rnn as rnn_search
from dartsfast.search import search_cnn, search_rnn
from dartsfast.search.cnn import CNNSearch

pytestmark = pytest.mark.usefixtures("undrawn")

SEARCH = {"cnn": search_cnn, "rnn": search_rnn}


@pytest.fixture(autouse=True)
def default_handlers():
    """Let every test begin with, and leave, the handlers of a new process."""
    handlers = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(signum, action) for signum, action in zip(SIGNALS, handlers, strict=True)]
    yield
    for signum, action, kept in zip(SIGNALS, handlers, before, strict=True):
        assert signal.getsignal(signum) == action  # a search has put them back
        signal.signal(signum, kept)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Options of a run of each kind, and its last checkpoint if nothing stops it."""
    found = {}
    for kind in OPTIONS:
        folder = tmp_path_factory.mktemp(kind)
        options = {**OPTIONS[kind](folder), "order": 2}
        SEARCH[kind](CONFIG[kind](**options, out=folder / "whole"))
        found[kind] = options, load_checkpoint(folder / "whole", kind)
    return found


def before_call(monkeypatch, owner, name, number, action):
    """Do ``action`` before call ``number`` of a function, counted from 1."""
    original, calls = getattr(owner, name), []

    def patched(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, patched)


# Order 2 calls torch.autograd.grad four times an iteration: at w, at w', and twice beside w.
@pytest.mark.parametrize(
    ("kind", "signum", "place", "number", "stopped"),
    [
        ("cnn", signal.SIGINT, "grad", 7, "in epoch 1, iteration 2"),
        ("cnn", signal.SIGTERM, "grad", 8, "in epoch 1, iteration 2"),
        ("rnn", signal.SIGTERM, "grad", 6, "in epoch 1, iteration 2"),
        ("rnn", signal.SIGINT, "grad", 7, "in epoch 1, iteration 2"),
        ("cnn", signal.SIGTERM, "validation", 2, "in epoch 2, iteration 3"),
        ("rnn", signal.SIGINT, "validation", 1, "in epoch 1, iteration"),
        ("cnn", signal.SIGHUP, "report", 1, "in epoch 2, iteration 0"),
        ("rnn", signal.SIGTERM, "report", 2, "after the last epoch"),
    ],
)
def test_a_stopped_search_goes_on_to_the_same_bits(
    tmp_path, monkeypatch, whole, kind, signum, place, number, stopped
):
    options, expected = whole[kind]
    owner, name = {
        "grad": (torch.autograd, "grad"),
        "validation": (CNNSearch, "_validate") if kind == "cnn" else (rnn_search, "text_loss"),
        "report": (Report, "epoch"),
    }[place]
    with monkeypatch.context() as patches, pytest.raises(RunStopped, match=stopped) as caught:
        before_call(patches, owner, name, number, lambda: os.kill(os.getpid(), signum))
        SEARCH[kind](CONFIG[kind](**options, out=tmp_path / "run"))
    assert caught.value.signum == signum
    assert str(caught.value).endswith(f"Go on with: dartsfast search {kind} --resume {tmp_path / 'run'}")
    state = load_checkpoint(tmp_path / "run", kind)
    where = f"in epoch {state['epoch'] + 1}, iteration {state['step']}"
    assert where in str(caught.value) or place == "report"
    SEARCH[kind](CONFIG[kind](), resume=tmp_path / "run")
    same(expected, load_checkpoint(tmp_path / "run", kind))


def test_the_checkpoint_that_says_that_all_is_done_comes_last(tmp_path, monkeypatch, whole):
    def draw(*arguments, final=False):
        if final:
            raise KeyboardInterrupt

    options, expected = whole["rnn"]
    with monkeypatch.context() as patches, pytest.raises(RunStopped, match="Ctrl-C in epoch 2"):
        patches.setattr(Report, "draw", draw)
        search_rnn(CONFIG["rnn"](**options, out=tmp_path / "run"))
    assert load_checkpoint(tmp_path / "run", "rnn")["epoch"] == 1
    search_rnn(CONFIG["rnn"](), resume=tmp_path / "run")
    same(expected, load_checkpoint(tmp_path / "run", "rnn"))


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch, whole):
    options, _ = whole["cnn"]

    def twice():
        signal.raise_signal(signal.SIGINT)
        time.sleep(interrupts.TWICE + 0.05)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    with monkeypatch.context() as patches, pytest.raises(RunStopped, match="Ctrl-C .*from before. Go on"):
        before_call(patches, torch.autograd, "grad", 7, twice)
        search_cnn(CONFIG["cnn"](**options, out=tmp_path / "run"))
    state = load_checkpoint(tmp_path / "run", "cnn")
    assert (state["epoch"], state["step"]) == (0, 0)


def test_a_ctrl_c_that_comes_twice_is_one(capfd):
    with stop_signals() as stop:
        for signum in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(signum)
    assert stop.signum == signal.SIGINT
    assert capfd.readouterr().err.count("Ctrl-C: saving a checkpoint") == 1


@pytest.mark.parametrize("signum", SIGNALS)
def test_only_who_pressed_ctrl_c_is_told_of_a_second_one(signum, capfd):
    with stop_signals():
        signal.raise_signal(signum)
    said = capfd.readouterr().err
    assert "saving a checkpoint after this iteration" in said
    assert ("again: stop at once" in said) == ("Ctrl-C" in said) == (signum == signal.SIGINT)


def test_a_second_sigterm_changes_nothing(monkeypatch):
    monkeypatch.setattr(interrupts, "TWICE", -1.0)
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.signum == signal.SIGTERM


def test_a_noted_ctrl_c_leaves_the_gate_open_for_a_second():
    weight = torch.ones(3)

    def pass_():
        signal.raise_signal(signal.SIGINT)  # noted only
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    def note(signum, frame):
        if noted:
            raise KeyboardInterrupt
        noted.append(signum)

    noted = []
    before = signal.signal(signal.SIGINT, note)
    with pytest.raises(KeyboardInterrupt), preserved([weight]):
        weight.zero_()
        interruptible(pass_)
    assert signal.signal(signal.SIGINT, before) is note
    assert torch.equal(weight, torch.ones(3))


def test_handlers_of_the_program_stay_its_own(tmp_path, monkeypatch, whole):
    options, expected = whole["cnn"]
    seen = []
    before = [
        signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum)),
        signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ]
    own = signal.getsignal(signal.SIGTERM)

    def both():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)

    with monkeypatch.context() as patches:
        before_call(patches, torch.autograd, "grad", 3, both)
        search_cnn(CONFIG["cnn"](**options, out=tmp_path / "run"))
    assert seen == [signal.SIGTERM]
    assert signal.signal(signal.SIGTERM, before[0]) is own
    assert signal.signal(signal.SIGHUP, before[1]) == signal.SIG_IGN
    same(expected, load_checkpoint(tmp_path / "run", "cnn"))


def test_a_search_in_a_thread_leaves_signals_alone():
    found = []

    def run():
        with stop_signals() as stop:
            found.extend([type(stop), *(signal.getsignal(signum) for signum in SIGNALS)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [Stop, signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]


@pytest.mark.parametrize(
    ("kind", "signum", "code"), [("cnn", signal.SIGINT, 130), ("rnn", signal.SIGTERM, 143)]
)
def test_a_stopped_process_says_how_to_go_on(tmp_path, whole, kind, signum, code):
    options, expected = whole[kind]
    out = tmp_path / "a run"
    given = [f"--{name}={value}" for name, value in options.items()]
    argv = [sys.executable, "-m", "dartsfast", "search", kind, f"--out={out}", "--device=cpu", *given]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if re.match(r"epoch 1/2  \d+/\d+", line):
            process.send_signal(signum)
            break
    _, error = process.communicate()
    assert process.returncode == code, error
    assert "Traceback" not in error
    state = load_checkpoint(out, kind)
    assert (state["epoch"], state["step"]) > (0, 0)
    command = shlex.split(error.splitlines()[-1].split("Go on with: ")[1])
    assert command == ["dartsfast", "search", kind, "--resume", str(out), "--device", "cpu"]
    again = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd="/")
    assert again.returncode == 0, again.stderr
    state = load_checkpoint(out, kind)
    state["config"]["device"] = "auto"
    same(expected, state)
    assert not (out / f"{CURRENT}.tmp").exists()
