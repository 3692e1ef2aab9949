"""One process on a run's folder, whatever it is called and however the last one died."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_runs import CONFIG, OPTIONS, begun, digests

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.cli import main
from dartsfast.errors import InputError
from dartsfast.runs import folder as run_folder
from dartsfast.runs.checkpoint import CURRENT, save_checkpoint
from dartsfast.runs.folder import LOCK, locked, new_folder
from dartsfast.search import search_rnn
from dartsfast.search.rnn import RNNSearch

HOLD = """
import sys, time
from pathlib import Path
from dartsfast.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    named = f"the run in {tmp_path} is in use by process {process.pid} on {socket.gethostname()}, since 2"
    with pytest.raises(InputError, match=named), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert str(process.pid) in (tmp_path / LOCK).read_text()  # it stayed behind
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert (tmp_path / LOCK).read_text() == ""


def test_a_run_in_use_is_refused_under_all_its_names(tmp_path):
    config = CONFIG["rnn"](**OPTIONS["rnn"](tmp_path))
    out = tmp_path / "run"
    out.mkdir()
    checkpoint = save_checkpoint(out, begun(RNNSearch(config)))
    (tmp_path / "folder").symlink_to(out)
    (tmp_path / "file.pt").symlink_to(checkpoint)
    with locked(out):
        before = digests(out)
        for name in (
            out,
            checkpoint,
            tmp_path / "folder",
            tmp_path / "folder" / CURRENT,
            tmp_path / "file.pt",
        ):
            with pytest.raises(InputError, match=f"{out} is in use by process {os.getpid()}"):
                search_rnn(config, resume=name)
        assert digests(out) == before
    (out / CURRENT).unlink()
    with locked(out):  # of a search that has not saved yet
        for name in (out, tmp_path / "folder"):
            with pytest.raises(InputError, match=f"is in use by process {os.getpid()}"):
                search_rnn(CONFIG["rnn"](**{**OPTIONS["rnn"](tmp_path), "out": name}))


def test_of_two_starts_at_one_moment_one_is_refused(tmp_path):
    options = [f"--{name}={value}" for name, value in OPTIONS["rnn"](tmp_path).items()]
    argv = [sys.executable, "-m", "dartsfast", "search", "rnn", "--out=run", *options]
    processes = [
        subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2], errors
    refused = codes.index(2)
    holder = f"the run in {tmp_path / 'run'} is in use by process {processes[1 - refused].pid} on"
    assert holder in errors[refused] or "run holds a run already" in errors[refused]
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda format: "20260101-120000")
    names = [str(new_folder("cnn")) for _ in range(3)]
    first = "runs/cnn-20260101-120000"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match=f"no locks on the file system of {tmp_path}"), locked(tmp_path):
        pass


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_tilde_that_the_shell_left_is_the_home(tmp_path, monkeypatch, kind):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    options = {**OPTIONS[kind](home), "epochs": 1}
    options["data"] = options["data"].replace(str(home), "~")
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert main(["search", kind, "--out=~/run", *flags]) == 0
    assert (home / "run" / "genotype.json").exists()
    assert main(["search", kind, "--resume=~/run", f"--out={home}/run"]) == 0
    assert main(["search", kind, "--resume", "--out=~/run"]) == 0
    assert main(["draw", "~/run", "--out=~/drawn"]) == 0
    assert main(["draw", "~/run"]) == 0
    assert {"drawn.png", "drawn.svg", "run.png", "run.svg"} <= {path.name for path in home.iterdir()}
    sizes = {"cnn": "--init_channels=2 --layers=3", "rnn": "--vocabulary=9 --nhid=4 --bptt=3"}[kind].split()
    argv = ["compare", kind, "--backends", "reference", "reference", "--iterations=1", "--batch_size=2"]
    assert main([*argv, *sizes, "--out=~/compared"]) == 0
    assert (home / "compared" / "compare.json").exists()
    assert not list(tmp_path.glob("~*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=f"cannot make or write the folder {folder}"), locked(folder):
            pass
