"""What the ranks of ``test_ranks.py`` do, and how they are started."""

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves

from dartsfast import candidates, ranks
from dartsfast.candidates.draw import draw_cnn
from dartsfast.data.batches import Batches
from dartsfast.errors import CheckFailedError, DivergedError, InputError, LostRankError, RunStopped
from dartsfast.runs.report import Report, Unseen
from dartsfast.runs.run import Run
from dartsfast.search import CNNConfig, RNNConfig, search_cnn, search_rnn
from dartsfast.train import TrainCNNConfig, TrainRNNConfig, train_cnn, train_rnn
from dartsfast.train.cnn import CNNTraining

TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "dartsfast",
]  # fmt: skip
IMAGES = {"image_size": 8, "init_channels": 2, "layers": 1, "report_freq": 1}
TEXT = {"emsize": 8, "nhid": 8, "nhidlast": 8, "bptt": 12, "log_interval": 1}
SECOND = {
    **IMAGES, "layers": 3, "batch_size": 2, "max_images": 8, "epochs": 1, "order": 2, "cutout": True,
    "cutout_length": 3,
}  # fmt: skip
DROPS = ("dropout", "dropouth", "dropoutx", "dropouti", "dropoute")


def parts(options):
    """Return options of searches and trainings as a selection calls them."""
    return {f"{part}_{name}": value for part in ("search", "train") for name, value in options.items()}


# Of two ranks each has so much of a batch. Networks of one cell have alphas without a gradient.
RUNS = {
    "cnn-1": (search_cnn, CNNConfig, {**IMAGES, "batch_size": 3, "epochs": 2}),
    "cnn-2": (search_cnn, CNNConfig, SECOND),
    "cnn-pc": (
        search_cnn,
        CNNConfig,
        {**SECOND, "method": "pc-darts", "init_channels": 4, "beta_decay": 50.0},
    ),
    "cnn-pt": (
        search_cnn,
        CNNConfig,
        {
            **IMAGES,
            "space": "s2",
            "batch_size": 2,
            "max_images": 4,
            "epochs": 1,
            "select": "perturbation",
            "select_epochs": 1,
        },
    ),
    "rnn-2": (search_rnn, RNNConfig, {**TEXT, "batch_size": 4, "epochs": 2, "order": 2}),
    "train-cnn": (train_cnn, TrainCNNConfig, {**IMAGES, "batch_size": 4, "epochs": 2, "arch": "DARTS_V2"}),
    "train-rnn": (train_rnn, TrainRNNConfig, {**TEXT, "batch_size": 4, "epochs": 2, "arch": "DARTS_V2"}),
}

# Of which one process computes the same with twice the batch.
HALVED = [name for name in RUNS if name not in ("cnn-1", "cnn-pt")]

SHORT_TEXT = {**TEXT, "batch_size": 4, "epochs": 1}
SHORT_IMAGES = {**IMAGES, "batch_size": 3, "epochs": 1}
SHORT_IMAGES_ALONE = {name: value for name, value in SHORT_IMAGES.items() if name != "image_size"}
COMPETITIONS = {
    "random-cnn": (candidates.RandomCNNConfig, {**SHORT_IMAGES, "candidates": 2}),
    "random-rnn": (candidates.RandomRNNConfig, {**SHORT_TEXT, "candidates": 2}),
    "select-cnn": (
        candidates.SelectCNNConfig, {**parts(SHORT_IMAGES_ALONE), "image_size": 8, "searches": 2},
    ),
    "select-rnn": (candidates.SelectRNNConfig, {**parts(SHORT_TEXT), "searches": 2}),
}  # fmt: skip


def config(name, folder, **changes):
    _, cls, options = RUNS[name]
    data = folder / "text" if "rnn" in name else f"imagefolder:{folder / 'images'}"
    return cls(data=str(data), device="cpu", **{**options, **changes})


def run(name, config, resume=None):
    return RUNS[name][0](config, resume=resume)


def in_float64(name, folder, out, batch_size, **changes):
    """Run ``name`` in float64, without dropouts, on stock PyTorch; the rest of a batch is other ranks'."""
    nothing = {"epochs": 1, **(dict.fromkeys(DROPS, 0.0) if "rnn" in name else {"layers": 1})}
    nothing |= {"drop_path_prob": 0.0} if name == "train-cnn" else {"backend": "reference"}
    finish = Batches._finish

    def doubles(*args):
        x, y = finish(*args)
        return x.double(), y

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(Batches, "_finish", doubles):
            return run(name, config(name, folder, out=out, batch_size=batch_size, **nothing, **changes))
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def watched(after=lambda run: None):
    """Yield digests of all that a run holds, one more after every iteration; ``after`` is called there."""
    found, original = [], Run.run

    def iteration(run):
        tensors = tree_leaves([run.model.state_dict(), *(o.state_dict() for o in run.optimizers().values())])
        data = b"".join(t.numpy().tobytes() for t in tensors if isinstance(t, torch.Tensor))
        found.append(hashlib.sha256(data).hexdigest())
        after(run)

    def begin(run, out):
        # Both are called once an iteration, when ranks have shared all that they share.
        with mock.patch.object(Report if ranks.first() else Unseen, "iteration", lambda *_: iteration(run)):
            return original(run, out)

    with mock.patch.object(Run, "run", begin):
        yield found


def bits(folder):
    """Run everything without a stop; then again with one, by a signal to rank 1, and to the end."""
    digests = {}
    for name in RUNS:
        with watched() as digests[name]:
            run(name, config(name, folder, out=folder / name / "whole"))

        def stop(run):
            if ranks.rank() == 1 and (run.epoch, run.step) == (0, 1):
                signal.raise_signal(signal.SIGTERM)

        out, here = folder / name / "stopped", config(name, folder)
        with contextlib.suppress(RunStopped), watched(stop):
            run(name, config(name, folder, out=out))
            raise AssertionError("it was not stopped")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".* goes on with ")
            run(name, type(here)(device="cpu"), resume=out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("cnn-1", CNNConfig(device="cpu"), resume=folder / "alone")
    said = [str(one.message) for one in caught if "process" in str(one.message)]
    (folder / f"bits-{ranks.rank()}.json").write_text(json.dumps({"digests": digests, "said": said}))


def compete(name, folder, out, resume=False):
    cls, options = COMPETITIONS[name]
    data = folder / "text" if name.endswith("rnn") else f"imagefolder:{folder / 'images'}"
    own = {} if resume else {"data": str(data), "out": str(out), **options}
    return getattr(candidates, name.replace("-", "_"))(
        cls(device="cpu", **own), resume=out if resume else None
    )


def competitions(folder):
    """Run all four without a stop, a candidate's training by itself, and two with a signal to rank 1."""
    for name in COMPETITIONS:
        compete(name, folder, folder / name / "whole")
    arch = repr(draw_cnn(candidates.RandomCNNConfig.seed + 1))
    train_portion = candidates.RandomCNNConfig.train_portion
    train_cnn(
        config("train-cnn", folder, **SHORT_IMAGES, arch=arch, train_portion=train_portion, out=folder / "1")
    )
    for name, place in (("random-rnn", "1"), ("select-cnn", "1/search")):
        out = folder / name / "stopped"
        try:
            with watched(partial(_stop_in, out / place)):
                compete(name, folder, out)
            raise AssertionError("it was not stopped")
        except RunStopped as stopped:
            said = ranks.gathered(str(stopped))
        compete(name, folder, out, resume=True)
        if ranks.first():
            (folder / f"{name}-said.json").write_text(json.dumps(said))


def _stop_in(place, run):
    if ranks.from_first(lambda: (place / "run.json").exists()) and ranks.rank() == 1:
        signal.raise_signal(signal.SIGTERM)


def halves(folder):
    """Run what one process runs with twice the batch."""
    for name in HALVED:
        norms = {} if name == "train-rnn" else {"sync_bn": True}
        memory = {"memory": "recompute"} if name == "cnn-2" else {}
        batch_size = RUNS[name][2]["batch_size"]
        in_float64(name, folder, folder / name / "halves", batch_size, **norms, **memory)


def exchanges(folder):
    """What is sent, by three ranks; then the last one hangs."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 7, 4096):
        every = torch.randn(3, size, generator=generator) * 10 ** torch.arange(3)[:, None]
        (found,) = ranks.average([every[ranks.rank()]])
        assert torch.equal(found, ((every[0] + every[1]) + every[2]) / 3)
        assert torch.equal(found, ranks.average([every[ranks.rank()].view(1, size, 1)])[0].flatten())
    assert ranks.gathered(f"rank {ranks.rank()}") == ["rank 0", "rank 1", "rank 2"]
    assert ranks.totals(1.5, 2 * ranks.rank()) == [4.5, 6]
    assert ranks.from_first(lambda: (Path("x"), ranks.rank())) == (Path("x"), 0)
    with contextlib.suppress(InputError):
        ranks.from_first(_refuse)
        raise AssertionError("nothing was raised")
    text = torch.arange(12).view(2, 6)
    assert torch.equal(torch.cat(ranks.gathered(ranks.columns(text)), 1), text)
    same = {"weight": torch.ones(3), "alphas": torch.zeros(2, 2)}
    ranks.check_same(same, "now")
    same["alphas"][1, 0] = -0.0 if ranks.rank() == 2 else 0.0
    try:
        ranks.check_same(same, "after epoch 7")
        raise AssertionError("nothing was raised")
    except CheckFailedError as error:
        assert "after epoch 7 rank 2 has another alphas than rank 0 (1 of 2" in str(error), error
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        ranks.seed_own_stream(5)
        drawn.append(ranks.gathered(torch.rand(1).item()))
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3
    torch.manual_seed(5)
    assert drawn[0][0] == torch.rand(1).item()
    training = CNNTraining(config("train-cnn", folder))
    try:  # all stop where one would
        training.record(1.0, loss=math.nan if ranks.rank() == 1 else 1.0)
        raise AssertionError("nothing was raised")
    except DivergedError as error:
        assert "loss is nan at epoch 1" in str(error)
    if ranks.rank() == 2:
        time.sleep(12)
        os._exit(0)
    began = time.monotonic()
    try:
        ranks.average([torch.ones(5)])
        raise AssertionError("nothing was raised")
    except LostRankError as error:
        assert "has not answered for 0.05 minutes" in str(error)
    assert time.monotonic() - began < 10


def _refuse():
    raise InputError("no")


def start(name, folder, count=2):
    """Have ``count`` processes do ``name``; return once all have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    environment = {
        **os.environ, "PYTHONPATH": f"{here.parent}:{here}", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, name, str(folder)], env={**environment, "RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(said)


def kill_a_rank(command, when):
    """Kill rank 1 of what torchrun starts at the first line ``when`` says so; see that the others end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if when(line):
            os.kill(_rank_of(process.pid, 1), signal.SIGKILL)
            break
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode != 0
    assert re.search("^dartsfast: another rank has ended", error, re.M), error


def _rank_of(torchrun, rank):
    """Return the process of ``rank`` among the children of ``torchrun``."""
    for task in Path(f"/proc/{torchrun}/task").iterdir():
        for child in (task / "children").read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    raise AssertionError(f"no rank {rank}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "exchanges":
        ranks.TIMEOUT = timedelta(seconds=3)
    with ranks.joined("cpu"), mock.patch.object(Report, "draw", lambda *arguments, **options: None):
        {"bits": bits, "competitions": competitions, "halves": halves, "exchanges": exchanges}[sys.argv[1]](
            Path(sys.argv[2])
        )
