"""Checkpoints: flipped bits, truncation, edits, full disks."""

import errno
import os
import resource
import subprocess
import sys
import warnings

import pytest
import torch
from small_runs import OPTIONS, digests

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.errors import InputError
from dartsfast.runs import checkpoint
from dartsfast.runs.checkpoint import CURRENT, PREVIOUS, load_checkpoint, save_checkpoint


def state(step):
    generator = torch.Generator().manual_seed(step)
    model = {f"layer{i}": torch.randn(7, 3, generator=generator) for i in range(4)}
    return {"kind": "cnn", "step": step, "model": model, "history": [{"epoch": 0, "loss": 1.5}] * 3}


def two_checkpoints(folder):
    """Save steps 1 and 2; return the bytes of the second."""
    for step in (1, 2):
        save_checkpoint(folder, state(step))
    return (folder / CURRENT).read_bytes()


def refused(folder, content):
    """Assert that ``content`` as the checkpoint is refused aloud, and the one before taken."""
    (folder / CURRENT).write_bytes(content)
    with pytest.warns(UserWarning, match="damaged.*going on from checkpoint.previous.pt"):
        assert load_checkpoint(folder, "cnn")["step"] == 1


def test_a_checkpoint_is_what_torch_load_reads(tmp_path):
    two_checkpoints(tmp_path)
    for loaded in (torch.load(tmp_path / CURRENT, weights_only=True), load_checkpoint(tmp_path, "cnn")):
        assert loaded["step"] == 2
        assert torch.equal(loaded["model"]["layer3"], state(2)["model"]["layer3"])


def test_every_flipped_bit_is_noticed(tmp_path):
    whole = two_checkpoints(tmp_path)
    bits = 8 * len(whole)
    spread = range(0, bits, max(1, bits // 500))
    ends = [*range(400), *range(bits - 800, bits)]  # the archive's first header and its directory's end
    for bit in {*spread, *(b + b // 8 % 8 for b in spread if b + 8 < bits), *ends}:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        refused(tmp_path, bytes(content))
    (tmp_path / CURRENT).write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(tmp_path, "cnn")["step"] == 2


def test_every_truncation_and_what_is_no_checkpoint_is_noticed(tmp_path):
    whole = two_checkpoints(tmp_path)
    for length in {*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 70, len(whole))}:
        refused(tmp_path, whole[:length])
    for other in (whole + b"\0", b"PK\3\4", bytes(len(whole)), b"text"):
        refused(tmp_path, other)


def test_two_spoilt_checkpoints_are_both_named(tmp_path):
    whole = two_checkpoints(tmp_path)
    for name in (CURRENT, PREVIOUS):
        (tmp_path / name).write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"{CURRENT} is damaged.*{PREVIOUS} is damaged"):
        load_checkpoint(tmp_path, "cnn")


def test_an_edited_checkpoint_is_refused(tmp_path):
    two_checkpoints(tmp_path)
    edited = {**torch.load(tmp_path / CURRENT, weights_only=True), "step": 1000}
    torch.save(edited, tmp_path / CURRENT)
    with pytest.raises(InputError, match="was edited"):
        load_checkpoint(tmp_path / CURRENT, "cnn")


def test_a_checkpoint_of_another_version_or_kind_is_refused(tmp_path):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, {**state(2), "format": "dartsfast search checkpoint 1"})
    with pytest.warns(UserWarning, match="another version of it.*the one before"):
        assert load_checkpoint(tmp_path, "cnn")["step"] == 1
    with pytest.raises(InputError, match="of a `search cnn`, not of a `search rnn`"):
        load_checkpoint(tmp_path / PREVIOUS, "rnn")


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(tmp_path):
    whole = two_checkpoints(tmp_path)
    (tmp_path / CURRENT).write_bytes(whole[:-1])
    save_checkpoint(tmp_path, state(3))
    assert load_checkpoint(tmp_path, "cnn")["step"] == 3
    assert load_checkpoint(tmp_path / PREVIOUS, "cnn")["step"] == 1


@pytest.mark.parametrize("stage", ["open", "write", "flush", "fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoints_as_they_were(tmp_path, monkeypatch, stage):
    two_checkpoints(tmp_path)
    before = digests(tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def __getattr__(self, name):
            return full if name == stage else getattr(self.file, name)

    if stage in ("fsync", "replace"):
        monkeypatch.setattr(checkpoint.os, stage, full)
    else:
        monkeypatch.setattr(checkpoint, "open", full if stage == "open" else Full, raising=False)
    with pytest.raises(OSError, match="No space left on device.*the one before is whole") as caught:
        save_checkpoint(tmp_path, state(3))
    assert caught.value.errno == errno.ENOSPC
    assert digests(tmp_path) == before


def test_a_kill_by_exception_removes_the_temporary_file(tmp_path, monkeypatch):
    two_checkpoints(tmp_path)
    before = digests(tmp_path)

    def interrupted(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, state(3))
    assert digests(tmp_path) == before


def test_the_command_says_that_a_file_cannot_grow(tmp_path):
    options = [f"--{name}={value}" for name, value in OPTIONS["rnn"](tmp_path).items()]
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "dartsfast", "search", "rnn", f"--out={out}", *options],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert f"cannot write the checkpoint {out / CURRENT} (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("checkpoint*"))
