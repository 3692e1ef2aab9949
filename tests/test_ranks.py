"""Several processes that compute one run: the same bits on all, those of one process, and none that waits."""

import json
import re
import shutil
import subprocess

import pytest
import rank_scripts
import torch
from small_data import image_folder, text_folder
from small_runs import begun, same

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch without gloo", allow_module_level=True)

from dartsfast import ranks
from dartsfast.errors import InputError
from dartsfast.runs.checkpoint import load_checkpoint, save_checkpoint
from dartsfast.search import CNNConfig, RNNConfig, search_rnn
from dartsfast.search.cnn import CNNSearch

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    image_folder(folder / "images", train=8)
    text_folder(folder / "text", lines=24)
    return folder


@pytest.fixture(scope="module")
def bits(folder):
    """What two ranks have found of their runs, and of one that a single process began."""
    alone = CNNSearch(rank_scripts.config("cnn-1", folder, batch_size=6))
    (folder / "alone").mkdir()
    save_checkpoint(folder / "alone", begun(alone, 1))
    rank_scripts.start("bits", folder)
    return [json.loads((folder / f"bits-{rank}.json").read_text()) for rank in range(2)]


def kind(name):
    return name if name.startswith("train") else name[:3]


@pytest.mark.parametrize("name", rank_scripts.RUNS)
def test_all_ranks_have_the_same_bits_after_every_iteration(bits, name):
    digests = [rank["digests"][name] for rank in bits]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == len(digests[0]) >= 2


@pytest.mark.parametrize("name", rank_scripts.RUNS)
def test_a_stopped_run_goes_on_to_the_same_bits(folder, bits, name):
    """Random streams of both ranks too; the signal came to rank 1 alone."""
    states = [load_checkpoint(folder / name / out, kind(name)) for out in ("whole", "stopped")]
    same(*states)
    first, second = (part["random"][0] for part in states[0]["ranks"])
    assert not torch.equal(first, second)
    stopped = json.loads((folder / name / "stopped" / "run.json").read_text())["processes"]
    assert len(stopped) == 2 and "SIGTERM in epoch 1, iteration 1" in stopped[0]["end"]


def test_ranks_leave_what_one_process_does(folder, bits):
    whole = folder / "rnn-2" / "whole"
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    (process,) = json.loads((whole / "run.json").read_text())["processes"]
    assert process["environment"]["processes"] == "2"
    command = f"torchrun --nproc_per_node=2 -m dartsfast search rnn --config {whole / 'config.toml'}"
    assert command in (whole / "report.html").read_text()
    notes = [
        json.loads(line) for line in (folder / "cnn-1" / "whole" / "epochs.jsonl").read_text().splitlines()
    ]
    assert [note["work"] for note in notes] == [12.0, 12.0]  # images of both ranks


def test_one_process_s_run_goes_on_in_two_aloud(folder, bits):
    assert not bits[1]["said"]
    (said,) = bits[0]["said"]
    assert re.search("1 process and goes on with 2 processes.* not that .*epoch 1 begins anew", said)
    state = load_checkpoint(folder / "alone", "cnn")
    assert state["epoch"] == 2 and len(state["ranks"]) == 2


@pytest.fixture(scope="module")
def halves(folder):
    rank_scripts.start("halves", folder)


@pytest.mark.parametrize("name", rank_scripts.HALVED)
def test_two_ranks_at_half_the_batch_are_one_rank(folder, halves, undrawn, name):
    batch_size = 2 * rank_scripts.RUNS[name][2]["batch_size"]
    rank_scripts.in_float64(name, folder, folder / name / "one", batch_size)
    two, one = (load_checkpoint(folder / name / out, kind(name)) for out in ("halves", "one"))
    assert two["model"].keys() == one["model"].keys()
    for key, expected in one["model"].items():
        assert expected.dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(two["model"][key], expected, rtol=1e-9, atol=1e-9, msg=key)
    for row, expected in zip(two["history"], one["history"], strict=True):
        for key in expected.keys() - {"seconds", "loader_share"}:
            assert row[key] == pytest.approx(expected[key], rel=1e-9), key


def test_what_ranks_send_each_other_and_a_rank_that_hangs(folder):
    rank_scripts.start("exchanges", folder, count=3)


def test_a_rank_that_is_killed(folder, bits, tmp_path):
    """The others end with a message, within seconds; the run goes on to the same bits, or in one process."""
    out = tmp_path / "run"
    options = rank_scripts.RUNS["rnn-2"][2]
    given = [f"--{name}={value}" for name, value in options.items()]
    command = [*rank_scripts.TORCHRUN, "search", "rnn", "--device=cpu", "--checkpoint_seconds=0"]
    rank_scripts.kill_a_rank(
        [*command, f"--data={folder / 'text'}", f"--out={out}", *given],
        when=lambda line: re.match(r"epoch 1/2  \d+/\d+", line),
    )
    shutil.copytree(out, tmp_path / "alone")
    subprocess.run([*command, f"--resume={out}"], check=True, capture_output=True)
    found, expected = load_checkpoint(out, "rnn"), load_checkpoint(folder / "rnn-2" / "whole", "rnn")
    found["config"]["checkpoint_seconds"] = 60.0
    same(expected, found)
    with pytest.warns(UserWarning, match="2 processes and goes on with 1 process"):
        search_rnn(RNNConfig(device="cpu"), resume=tmp_path / "alone")
    last = json.loads((tmp_path / "alone" / "run.json").read_text())["processes"][-1]
    assert last["environment"]["trajectory"] == "neither that of 2 nor of 1 processes"
    assert "ranks" not in load_checkpoint(tmp_path / "alone", "rnn")


@pytest.fixture
def launched(monkeypatch):
    """The variables that torchrun sets."""
    variables = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_every_rank_takes_its_own_gpu(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="cuda:1 would be that of all ranks"), ranks.joined("cuda:1"):
        pass
    with pytest.raises(InputError, match="there are 1 GPUs and no 2"), ranks.joined("auto"):
        pass


@pytest.mark.parametrize("config", [CNNConfig, RNNConfig])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_kernels_know_no_other_rank_s_statistics(config, backend):
    with pytest.raises(InputError, match=f"sync_bn needs --backend reference, got {backend}"):
        config(sync_bn=True, backend=backend).check()
    config(sync_bn=True, backend="reference").check()
