"""The ImageNet protocol: images as torchvision's transforms make them, a loop written anew, the same bits."""

import hashlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_data import image_folder
from small_runs import same
from torch.nn.functional import log_softmax

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")

from small_training import in_float64
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dartsfast.candidates import RandomCNNConfig, SelectCNNConfig
from dartsfast.cli import _parser, main
from dartsfast.cnn.genotypes import DARTS_V1, DARTS_V2
from dartsfast.cnn.model import NetworkImageNet
from dartsfast.data.imagenet import ImageNetBatches
from dartsfast.errors import InputError, RunStopped
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.train import TestCNNConfig, TrainCNNConfig, test_cnn, train_cnn
from dartsfast.train.cnn import CNNTraining
from dartsfast.train.evaluate import test_network

NORMALISE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture
def data(tmp_path):
    """Three images a class in training, one held out, 50 pixels wide."""
    return f"imagefolder:{image_folder(tmp_path / 'images', classes=2, train=3, held_out=1, side=50)}"


def config(data, **options):
    sizes = {"init_channels": 4, "layers": 2, "batch_size": 4, "epochs": 2, "report_freq": 1, "workers": 0}
    return TrainCNNConfig.of("imagenet", data=data, **{**sizes, **options})


def test_the_protocol_is_that_of_the_original():
    given = TrainCNNConfig.of("imagenet")
    assert (given.layers, given.init_channels, given.batch_size, given.epochs) == (14, 48, 128, 250)
    assert (given.learning_rate, given.momentum, given.weight_decay, given.grad_clip) == (0.1, 0.9, 3e-5, 5)
    assert (given.schedule, given.gamma, given.decay_period, given.label_smooth) == ("step", 0.97, 1, 0.1)
    assert (given.auxiliary_weight, given.drop_path_prob, given.image_size, given.seed) == (0.4, 0, 224, 0)
    assert (given.workers, given.report_freq, given.arch) == (4, 100, "DARTS")
    assert TrainCNNConfig.of("cifar") == TrainCNNConfig()
    test = TestCNNConfig.of("imagenet")
    assert (test.network, test.layers, test.init_channels, test.batch_size) == ("imagenet", 14, 48, 128)
    assert RandomCNNConfig.of("imagenet").epochs == RandomCNNConfig().epochs == 100
    assert SelectCNNConfig.protocol("imagenet")["train_layers"] == 14
    assert SelectCNNConfig.protocol("imagenet")["image_size"] == 224
    with pytest.raises(InputError, match="unknown protocol 'svhn': choose one of cifar, imagenet"):
        TrainCNNConfig.of("svhn")


def seeded(seed, stream, pass_, image):
    digest = hashlib.sha256(repr((seed, stream, pass_, image)).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))


@pytest.mark.parametrize("image_size", [224, 256])
def test_images_are_those_of_the_originals_transforms(data, image_size):
    """Every image of two passes, each with its own seed; held-out ones are the centre of 8/7 the size."""
    training = CNNTraining(config(data, image_size=image_size, seed=3))
    augment = [
        transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.2), transforms.ToTensor(), NORMALISE,
    ]  # fmt: skip
    scaled = {224: 256, 256: 293}[image_size]
    centre = [transforms.Resize(scaled), transforms.CenterCrop(image_size), transforms.ToTensor(), NORMALISE]
    root = Path(data.partition(":")[2])
    train = ImageFolder(str(root / "train"), transforms.Compose(augment))
    held_out = ImageFolder(str(root / "val"), transforms.Compose(centre))
    state = torch.random.get_rng_state()
    found = [[(x.clone(), y) for x, y in training.train.iterate(pass_)] for pass_ in (0, 1)]
    tested = list(training.check.iterate(0))
    assert torch.equal(state, torch.random.get_rng_state())
    for pass_, batches in enumerate(found):
        order = training.train._pass_order(pass_).tolist()
        assert sorted(order) == list(range(6)) and [len(y) for _, y in batches] == [4, 2]
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        for k, image in enumerate(order):
            seeded(3, "train", pass_, image)
            theirs, label = train[image]
            assert y[k] == label
            torch.testing.assert_close(x[k], theirs, rtol=0, atol=1e-6)
    assert not torch.equal(found[0][0][0], found[1][0][0])
    for k, (x, y) in enumerate(zip(*(torch.cat(parts) for parts in zip(*tested, strict=True)), strict=True)):
        torch.testing.assert_close(x, held_out[k][0], rtol=0, atol=1e-6)
        assert y == held_out[k][1]


def test_batches_are_the_same_from_any_workers_and_anywhere(data):
    stream = CNNTraining(config(data)).train
    here = list(stream.iterate(1))
    for workers in (1, 2):
        stream.workers = workers
        for start in (0, 1):
            there = list(stream.iterate(1, start))
            assert len(there) == 2 - start
            for (x, y), (mine, labels) in zip(there, here[start:], strict=True):
                assert torch.equal(x, mine) and torch.equal(y, labels)
    assert all(torch.equal(a, b) for a, b in zip(stream.batch(1, 1), here[1], strict=True))
    with pytest.raises(InputError, match="no batch 2 in pass 0"):
        stream.batch(0, 2)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_an_epoch_is_that_of_a_loop_written_anew(data, auxiliary):
    """The third of three; smoothing, both losses, decay, momentum, clip and schedule by hand."""
    options = config(data, auxiliary=auxiliary, grad_clip=0.3, epochs=3, decay_period=2, drop_path_prob=0.3)
    training, other = (in_float64(CNNTraining(options)) for _ in range(2))
    model, velocity = other.model, {}
    assert isinstance(model, NetworkImageNet)
    for epoch in range(3):
        torch.manual_seed(epoch)  # of the dropped paths
        for _ in training.iterations():
            pass
        row = training.finish_epoch()
        training.epoch, training.step = training.epoch + 1, 0
        training.sums, training.count = {}, 0.0

        torch.manual_seed(epoch)
        model.train()
        model.drop_path_prob = 0.3 * epoch / 3
        rate = (0.1, 0.1, 0.1 * 0.97)[epoch]
        total = 0.0
        for x, y in other.train.iterate(epoch):
            outputs = model(x)
            # The original's CrossEntropyLabelSmooth, of two classes.
            wanted = torch.full((len(y), 2), 0.1 / 2, dtype=torch.float64)
            wanted[torch.arange(len(y)), y] += 0.9
            losses = [-(wanted * log_softmax(z, 1)).mean(0).sum() for z in outputs if z is not None]
            loss = losses[0] + 0.4 * losses[1] if auxiliary else losses[0]
            weights = list(model.parameters())
            gradients = torch.autograd.grad(loss, weights)
            norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
            with torch.no_grad():
                for k, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                    step = g * min(1.0, 0.3 / (norm + 1e-6)) + 3e-5 * w
                    velocity[k] = 0.9 * velocity[k] + step if k in velocity else step
                    w -= rate * velocity[k]
            total += loss.item() * len(y)
        assert row["lr"] == pytest.approx(rate, rel=1e-12)
        assert row["train_loss"] == pytest.approx(total / 6, rel=1e-9)
    for (name, ours), theirs in zip(
        training.model.state_dict().items(), model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)
    model.eval()
    x, y = next(other.check.iterate(0))
    logits = model(x)[0].detach()
    plain = -log_softmax(logits, 1)[torch.arange(len(y)), y].mean().item()  # tests are not smoothed
    assert test_network(model, other.check).loss == pytest.approx(plain, rel=1e-9) == row["test_loss"]


def test_a_stopped_training_goes_on_to_the_same_bits_with_other_workers(data, tmp_path, monkeypatch, undrawn):
    straight = train_cnn(config(data, auxiliary=True, out=str(tmp_path / "straight")))
    iterations, seen = CNNTraining.iterations, 0

    def interrupted(self):
        nonlocal seen
        for found in iterations(self):
            seen += 1
            if seen == 3:  # the first of the second epoch
                self.stop.ask(signal.SIGTERM)
            yield found

    with (
        monkeypatch.context() as patches,
        pytest.raises(RunStopped, match="train cnn --resume .* --workers 2"),
    ):
        patches.setattr(CNNTraining, "iterations", interrupted)
        train_cnn(config(data, auxiliary=True, workers=2, out=str(tmp_path / "stopped")))
    resumed = train_cnn(TrainCNNConfig(workers=1), resume=tmp_path / "stopped")
    states = [load_checkpoint(tmp_path / name, "train-cnn") for name in ("straight", "stopped")]
    assert [state["config"].pop("workers") for state in states] == [0, 1]
    same(*states)
    same(*(torch.load(run.weights, weights_only=True) for run in (straight, resumed)))
    assert 0 <= resumed.history[-1]["test_acc"] <= 100 == resumed.history[-1]["test_acc5"]
    assert resumed.lesson.endswith(f"test error {100 - resumed.history[-1]['test_acc']:.2f} %")


def test_a_signal_to_run_and_workers_is_one_to_the_run(data, tmp_path):
    """As a terminal or a queue of jobs sends it: workers leave it to the run, which says how to go on."""
    words = ["--preset=imagenet", f"--data={data}", f"--out={tmp_path / 'run'}", "--workers=2", "--epochs=99"]
    sizes = ["--init_channels=4", "--layers=2", "--batch_size=2", "--report_freq=1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "dartsfast", "train", "cnn", *words, *sizes],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup ignores it
    ) as run:  # fmt: skip
        for line in run.stdout:
            if "iteration 2" in line or "2/3" in line:
                break
        os.killpg(run.pid, signal.SIGHUP)
        _, error = run.communicate(timeout=120)
    assert run.returncode == 129, error
    first, *rest = error.strip().splitlines()
    assert first.startswith("dartsfast: SIGHUP: saving a checkpoint") and len(rest) == 1, error
    assert rest[0].startswith("dartsfast: stopped by SIGHUP in epoch 1") and "--resume" in rest[0]


def test_damaged_files_and_killed_workers_are_named(data):
    training = CNNTraining(config(data))
    broken = Path(data.partition(":")[2]) / "train" / "class1" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    for workers in (0, 1):
        training.train.workers = workers
        with pytest.raises(InputError, match=r"^cannot decode the image .*class1/1.png \(.*remove it$"):
            list(training.train.iterate(0))
    broken.write_bytes(whole)

    def killed(image):
        os.kill(os.getpid(), signal.SIGKILL)

    training.train.transform = killed
    with pytest.raises(
        InputError, match=r"that decodes images has failed \(.*(killed|exited).*fewer --workers"
    ):
        list(training.train.iterate(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_size": 32},
            "sides from 224 to 416 that are multiples of 32, got 32x32: use --image_size 224",
        ),
        ({"image_size": 240}, "got 240x240: use --image_size 224"),
        ({"image_size": 448}, "got 448x448: use --image_size 224"),
        ({"image_size": 288, "auxiliary": True}, "takes images of 224x224 to 256x256, got 288x288"),
        ({"data": "photos"}, "photos has 32x32 images, got image_size 224: only imagefolder has others"),
        ({"label_smooth": 1.5}, "label_smooth must be at most 1, got 1.5"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"decay_period": 0}, "decay_period must be above 0"),
        ({"workers": -1}, "workers must not be negative"),
        ({"network": "svhn"}, "network must be one of cifar, imagenet, got 'svhn'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train_cnn(config(options.pop("data", data), out=str(tmp_path / "run"), **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("image_size", [224, 256, 416])
def test_sizes_that_are_taken_work(image_size):
    network = NetworkImageNet(2, 3, 2, image_size <= 256, DARTS_V2)
    logits, auxiliary = network(torch.zeros(2, 3, image_size, image_size))
    assert logits.shape == (2, 3) and (auxiliary is None) == (image_size > 256)


def test_image_files_are_needed(data):
    source = torch.utils.data.TensorDataset(torch.zeros(1))
    with pytest.raises(InputError, match="takes image files: use --data imagefolder:DIR"):
        ImageNetBatches(
            source, 1, image_size=224, workers=0, mean=torch.zeros(3), std=torch.ones(3), seed=0,
            stream="train", augment=True,
        )  # fmt: skip


def test_a_rate_that_is_not_that_of_the_epoch_is_refused(data):
    training = CNNTraining(config(data))
    state = training.state()
    training.check_state(state)
    state["optimizer"]["param_groups"][0]["lr"] = 0.05
    with pytest.raises(InputError, match=r"the learning rate is 0.05 in epoch 0, planned is 0.1"):
        training.check_state(state)


def test_weights_of_the_originals_script_are_tested(data, tmp_path, capsys):
    """A dict with the state_dict in it; of --parallel, with module. before its names."""
    network = NetworkImageNet(4, 2, 2, True, DARTS_V1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    saved = {"epoch": 3, "state_dict": network.state_dict(), "best_acc_top1": 76.3}
    parallel = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({**saved, "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pth.tar")
    torch.save({**saved, "state_dict": parallel}, tmp_path / "parallel.pth.tar")
    training = CNNTraining(config(data, arch="DARTS_V1", auxiliary=True))
    training.model.load_state_dict(network.state_dict())
    expected = str(test_network(training.model, training.check))
    words = ["--preset=imagenet", f"--data={data.partition(':')[2]}", "--init_channels=4", "--layers=2"]
    for file in ("checkpoint.pth.tar", "parallel.pth.tar"):
        place = f"--model_path={tmp_path / file}"
        assert main(["test", "cnn", *words, "--arch=DARTS_V1", "--auxiliary", place, "--workers=0"]) == 0
        assert capsys.readouterr().out.strip() == expected
    assert "guesses" not in expected  # there are two classes


def test_the_originals_command_lines(data, tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.chdir(tmp_path)
    small = ["--init_channels", "4", "--layers", "2", "--batch_size", "4", "--epochs", "1", "--workers", "0"]
    line = (
        f"--data {data.partition(':')[2]} --learning_rate 0.1 --momentum 0.9 --weight_decay 3e-5 "
        "--report_freq 100 --auxiliary --auxiliary_weight 0.4 --drop_path_prob 0 --save EXP --seed 0 "
        "--arch DARTS_V2 --grad_clip 5. --label_smooth 0.1 --gamma 0.97 --decay_period 1 --parallel"
    )
    assert main(["train", "cnn", "--preset", "imagenet", *line.split(), *small]) == 0
    said = capsys.readouterr()
    assert "--parallel has no effect on a training" in said.err and "M multiply-adds an image" in said.out
    (folder,) = tmp_path.glob("eval-EXP-*")
    assert load_checkpoint(folder, "train-cnn")["config"]["network"] == "imagenet"
    assert main(["test", "cnn", str(folder), "--workers", "0"]) == 0
    tested = capsys.readouterr().out
    assert tested.startswith("test error") and tested.partition(",")[0] in said.out
    with pytest.raises(InputError, match="knows its own network: leave out --network"):
        test_cnn(TestCNNConfig(model_path=str(folder), network="imagenet"))
    args = _parser().parse_args(["random", "cnn", "--preset", "imagenet"])
    assert args.preset == "imagenet"
