"""Training found recurrent cells: sizes of the paper, a loop written anew in float64, averages, tests."""

import math
import signal

import pytest
import torch
from rnn_by_hand import ByHand, epoch_by_hand
from small_data import text_folder
from small_rnn_training import DROPOUTS, SIZES, config, run_epoch
from small_rnn_training import data as data  # fixtures
from small_rnn_training import one_thread as one_thread
from small_runs import same

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.cli import main
from dartsfast.data import check_fingerprint
from dartsfast.errors import DivergedError, InputError
from dartsfast.rnn import utils as rnn_utils
from dartsfast.rnn.genotypes import DARTS_V1, DARTS_V2, ENAS
from dartsfast.rnn.model import RNNModel
from dartsfast.runs.checkpoint import load_checkpoint, save_checkpoint
from dartsfast.runs.interrupts import StopAsked
from dartsfast.train import TestRNNConfig, TrainRNNConfig, test_rnn, train_rnn
from dartsfast.train import rnn as training_module
from dartsfast.train.rnn import RNNTraining


def test_sizes_are_those_of_the_paper():
    """Tables 2 and 3: 23 M parameters on Penn Treebank, 33 M on WikiText-2."""
    for protocol, words, million in (("ptb", 10_000, 23), ("wt2", 33_278, 33)):
        options = TrainRNNConfig.of(protocol)
        sizes = options.emsize, options.nhid, options.nhidlast
        model = RNNModel(words, *sizes, genotype=DARTS_V2)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == million


def test_the_protocols_are_those_of_the_original():
    ptb, wt2 = TrainRNNConfig(), TrainRNNConfig.of("wt2", lr=3.0)
    assert (ptb.nhid, ptb.batch_size, ptb.bptt, ptb.lr, ptb.clip, ptb.epochs) == (
        850,
        64,
        35,
        20.0,
        0.25,
        8000,
    )
    dropouts = ptb.dropout, ptb.dropouth, ptb.dropoutx, ptb.dropouti, ptb.dropoute
    assert dropouts == (0.75, 0.25, 0.75, 0.2, 0.0)
    assert (ptb.wdecay, ptb.alpha, ptb.beta, ptb.nonmono, ptb.seed) == (8e-7, 0.0, 1e-3, 5, 1267)
    assert (wt2.nhid, wt2.dropouth, wt2.wdecay, wt2.dropoutx, wt2.lr) == (700, 0.15, 5e-7, 0.75, 3.0)
    with pytest.raises(InputError, match="unknown protocol 'wt3': choose one of ptb, wt2"):
        TrainRNNConfig.of("wt3")


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("small", [-1, 2])
def test_epochs_are_those_of_a_loop_written_anew(data, small, backend):
    """One with SGD, one with averages: lengths, rates, dropouts, AR, TAR, clip, decay, validation, test."""
    options = config(
        data, arch="rnn:DARTS_V1", alpha=0.5, beta=0.3, wdecay=1e-3, clip=0.2, max_seq_len_delta=4,
        small_batch_size=small, backend=backend, **DROPOUTS,
    )  # fmt: skip
    training = RNNTraining(options)
    training.model.double()
    hand = ByHand({name: value.detach() for name, value in training.model.state_dict().items()}, options)
    lengths = torch.Generator().manual_seed(7)
    losses = []
    for epoch in range(2):
        torch.manual_seed(epoch)  # of the masks
        row = run_epoch(training)
        torch.manual_seed(epoch)
        train_loss = epoch_by_hand(hand, training.train, lengths, averaging=epoch == 1)
        losses.append(hand.text_loss(training.valid, *(hand.ax or hand.weights())))
        assert row["train_loss"] == pytest.approx(train_loss, rel=1e-9)
        assert row["train_ppl"] == pytest.approx(math.exp(train_loss), rel=1e-9)
        assert row["valid_loss"] == pytest.approx(losses[-1], rel=1e-9)
        assert (row["averaged"], "test_loss" in row) == (epoch, epoch == 1)
        own = dict(training.model.named_parameters())
        names = ["encoder.weight", "rnns.0._W0", *(f"rnns.0._Ws.{i}" for i in range(8)), "decoder.bias"]
        for name, theirs in zip(names, hand.weights(), strict=True):
            torch.testing.assert_close(own[name].detach(), theirs, rtol=1e-8, atol=1e-10, msg=name)
        if epoch == 0:
            first = [w.clone() for w in hand.weights()]
            training.optimizer = training._new_optimizer(averaging=True)
    best = hand.ax if losses[1] < losses[0] else first
    assert row["test_loss"] == pytest.approx(hand.text_loss(training.tested, *best), rel=1e-9)
    assert training.tested.shape == (300, 1) and training.valid.shape == (30, 10)


def test_lengths_vary_around_bptt_within_bounds(data):
    training = RNNTraining(config(data, bptt=35))
    drawn = torch.tensor([training._draw_length() for _ in range(4000)], dtype=torch.float64)
    assert 5 <= drawn.min() < 17 and 48 < drawn.max() <= 55
    assert 33 < drawn.mean() < 35 and (drawn < 25).double().mean() == pytest.approx(0.07, abs=0.02)
    narrow = RNNTraining(config(data, bptt=3, max_seq_len_delta=0))
    assert {narrow._draw_length() for _ in range(50)} == {3}


def test_weights_are_averaged_on_the_non_monotone_trigger(data, monkeypatch):
    """After an epoch worse than the best but the last two before it: 3.1 is compared with 5, 4 and 3."""
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.2, 3.1, 3.05, 2.9])
    said, phases, kept = [], [], []
    monkeypatch.setattr(training_module, "text_loss", lambda *args: next(losses))
    training = RNNTraining(config(data, nonmono=2, epochs=99))
    training.say = said.append
    for _ in range(8):
        phases.append(run_epoch(training)["averaged"])
        kept.append(training.best["epoch"])
    assert phases == [0, 0, 0, 0, 0, 0, 1, 1] and training.validations == [5.0, 4.0, 3.0, 3.5, 3.2, 3.1]
    assert kept == [1, 2, 3, 3, 3, 3, 3, 8]
    assert len(said) == 1 and "validation in epoch 6 is worse" in said[0]
    assert training.optimizer.param_groups[0]["lr"] == 2.0


def averaging(data, **options):
    """Return a training that has averaged weights for an epoch."""
    training = RNNTraining(config(data, **options))
    training.optimizer = training._new_optimizer(averaging=True)
    return training, run_epoch(training)


def test_evaluation_has_the_averages_and_training_its_own_weights(data):
    training, row = averaging(data, epochs=99)
    params = list(training.model.parameters())
    means = [training.optimizer.state[p]["ax"] for p in params]
    assert all(not torch.equal(p, mean) for p, mean in zip(params, means, strict=True))
    other = RNNTraining(config(data))
    with torch.no_grad():
        for p, mean in zip(other.model.parameters(), means, strict=True):
            p.copy_(mean)
    assert rnn_utils.text_loss(other.model, other.valid, other.config) == row["valid_loss"]
    same(training.best["model"], dict(other.model.state_dict()))
    for _ in training.iterations():
        pass
    own = [p.detach().clone() for p in params]
    training.stop.ask(signal.SIGTERM)
    with pytest.raises(StopAsked):
        training.finish_epoch()
    assert all(torch.equal(p, kept) for p, kept in zip(params, own, strict=True))


@pytest.mark.parametrize("averages", [False, True])
def test_the_best_epoch_is_kept_as_it_was(data, averages):
    training = RNNTraining(config(data, epochs=99))
    if averages:
        training.optimizer = training._new_optimizer(averaging=True)
    run_epoch(training)
    before = training_module._on_cpu(training.best)
    copied = {name: value.clone() for name, value in training.best["model"].items()}
    for _ in training.iterations():
        pass
    same(copied, training.best["model"])
    same(before, training.best)


def test_the_averages_gone_back_to_are_no_views(data):
    training, _ = averaging(data, epochs=99)
    for _ in range(2):  # the second finds what the first left
        kept = {name: value.clone() for name, value in training.best["model"].items()}
        ax = {i: state["ax"].clone() for i, state in training.best["optimizer"]["state"].items()}
        assert training.go_back(DivergedError("", "loss is nan")) == 1
        training.epoch, training.step = 1, 0
        assert training.averaging and training.position == 0 and training.hidden is None
        same(kept, dict(training.model.state_dict()))
        for _ in training.iterations():
            pass
        training.sums, training.count = {}, 0.0
        same(kept, training.best["model"])
        same(ax, {i: state["ax"] for i, state in training.best["optimizer"]["state"].items()})


def state_of(data, **options):
    training, row = averaging(data, **options)
    row = {"epoch": 1, **row, "seconds": 0.0}
    training.history.append(row)
    next(training.iterations())
    return training, {"format": "", **training.state()}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state["optimizer"].update(param_groups=[]), "optimizer.param_groups has 0 entries"),
        (lambda state: state["optimizer"]["param_groups"][0].pop("t0"), "optimizer"),
        (lambda state: state["optimizer"]["state"][0].pop("ax"), r"state\[0\] lacks ax"),
        (lambda state: state["optimizer"]["state"][0].update(mu=1.0), r"state\[0\].mu is 1.0"),
        (lambda state: state["optimizer"].update(state={}), "optimizer.state has 0 entries"),
        (lambda state: state["extra"].update(best=None), "extra.best is None"),
        (lambda state: state["extra"]["best"].update(epoch=2), "extra.best.epoch is 2, and 1 are done"),
        (lambda state: state["extra"]["best"].update(optimizer=3), "extra.best.optimizer is 3"),
        (
            lambda state: state["extra"]["best"]["model"].pop("decoder.bias"),
            "extra.best.model lacks decoder.bias",
        ),
        (lambda state: state["extra"].update(hidden=None), "extra.hidden is None"),
        (lambda state: state["extra"].update(validations=["x"]), "validations"),
        (lambda state: state["extra"].update(returns=99), "extra.returns is 99"),
        (lambda state: state["extra"].update(position=400), "step is 1 at row 400"),
        (lambda state: state.update(count=200.0), "count is 200 after 1 steps"),
    ],
)
def test_what_cannot_be_a_training_is_refused(data, edit, message):
    training, state = state_of(data, epochs=3)
    fresh = RNNTraining(training.config)
    fresh.check_state(state)
    state = training_module._on_cpu(state)
    edit(state)
    with pytest.raises(InputError, match=message):
        RNNTraining(training.config).check_state(state)


def test_a_test_reads_word_after_word(data, tmp_path, capsys, undrawn):
    result = train_rnn(config(data, arch="DARTS_V1", out=str(tmp_path / "run")))
    assert (
        result.genotype == DARTS_V1
        and f"test perplexity {result.history[-1]['test_ppl']:.2f}" in result.lesson
    )
    weights = {name: value.double() for name, value in torch.load(result.weights).items()}
    hand = ByHand(weights, config(data))
    corpus = training_module.resolve_corpus(data)
    network = {"arch": "rnn:DARTS_V1", "data": data, "bptt": 7, **SIZES}
    for split in ("test", "valid", "train"):
        tokens = getattr(corpus, split)
        wanted = hand.text_loss(tokens[:, None], *hand.weights())
        for given in ({"model_path": str(result.out)}, {"model_path": str(result.weights), **network}):
            found = test_rnn(TestRNNConfig(split=split, **given))
            assert found.loss == pytest.approx(wanted, rel=1e-5)
            assert (found.words, found.ppl) == (len(tokens) - 1, pytest.approx(math.exp(found.loss)))
    old = ["--log-interval", "3", "--dropout", "0.5", "--small_batch_size", "2"]
    assert main(["test", "rnn", str(result.out), *old]) == 0
    said = capsys.readouterr()
    assert f"test perplexity {result.history[-1]['test_ppl']:.2f}, loss" in said.out
    assert "--log-interval has no effect on a test" in said.err
    again = train_rnn(TrainRNNConfig(), resume=result.out)
    assert (again.history, again.lesson) == (result.history, result.lesson)


def test_weights_of_the_original_load_and_whole_models_are_refused(data, tmp_path):
    """Of PyTorch 0.3's format; a model that was pickled whole runs code when it is read."""
    model = RNNModel(13, 6, 6, 6, genotype=ENAS)
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    given = {"model_path": str(path), "data": data, **SIZES}
    assert test_rnn(TestRNNConfig(arch="ENAS", **given)).words == 299
    for wrong in ({"arch": "DARTS"}, {"arch": "ENAS", "emsize": 5, "nhid": 5, "nhidlast": 5}):
        with pytest.raises(InputError, match="are not of this network: .* the vocabulary of --data must be"):
            test_rnn(TestRNNConfig(**{**given, **wrong}))
    torch.save(model, path)
    with pytest.raises(
        InputError, match="pickled whole, as the original's rnn/train.py saves it, save the state_dict"
    ):
        test_rnn(TestRNNConfig(**given))


def test_what_cannot_be_tested_is_refused(data, tmp_path, undrawn):
    result = train_rnn(config(data, out=str(tmp_path / "run"), epochs=1))
    other = str(text_folder(tmp_path / "other", words=11))
    for given, message in (
        ({}, "nothing to test"),
        ({"model_path": str(tmp_path)}, "no checkpoint in"),
        (
            {"model_path": str(result.out), "nhid": 6, "emsize": 6, "nhidlast": 6},
            "knows its own network: leave out --emsize",
        ),
        (
            {"model_path": str(result.out), "data": other},
            "the vocabulary of .*other is not that of the training",
        ),
    ):
        with pytest.raises(InputError, match=message):
            test_rnn(TestRNNConfig(**given))
    training = RNNTraining(config(data))
    (tmp_path / "begun").mkdir()
    save_checkpoint(tmp_path / "begun", training.state())
    with pytest.raises(InputError, match="has no weights to test yet"):
        test_rnn(TestRNNConfig(model_path=str(tmp_path / "begun")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "cnn:DARTS_V2"}, r"CNNs \(fields normal, .*\) is none of RNNs"),
        ({"nhid": 7}, "emsize, nhid and nhidlast must be equal .*, got 6, 7 and 6"),
        ({"small_batch_size": 3}, "small_batch_size must be -1 or divide the batch size 4, got 3"),
        ({"small_batch_size": 0}, "small_batch_size must be -1 or divide"),
        ({"small_batch_size": -2}, "small_batch_size must be -1 or divide"),
        ({"nonmono": 0}, "nonmono must be above 0"),
        ({"dropoute": 1.0}, "dropoute must be below 1"),
        (
            {"batch_size": 201},
            "the train text has 600 tokens, too few for 201 columns of 3: use a smaller --batch_size",
        ),
        ({"data": "elsewhere"}, "is not a folder"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train_rnn(config(**{"data": data, "out": str(tmp_path / "run"), **options}))
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_a_corpus_without_a_split_is_refused(data, tmp_path):
    (tmp_path / "text" / "test.txt").unlink()
    with pytest.raises(InputError, match="lacks the files of a corpus"):
        train_rnn(config(data, out=str(tmp_path / "run")))
    (tmp_path / "text" / "test.txt").write_text("")
    with pytest.raises(InputError, match="holds no word"):
        train_rnn(config(data, out=str(tmp_path / "run")))


def test_another_test_text_is_refused(data, tmp_path):
    training = RNNTraining(config(data))
    text = tmp_path / "text" / "test.txt"
    text.write_text(text.read_text().replace("w1", "w2", 1))
    with pytest.raises(InputError, match="test text: other tokens"):
        check_fingerprint(data, training.fingerprint, RNNTraining(config(data)).fingerprint)


def test_the_originals_command_line(data, tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.chdir(tmp_path)
    sizes = ["--emsize", "6", "--nhid", "6", "--nhidlast", "6", "--batch_size", "4", "--epochs", "1"]
    command = ["train", "rnn", "--data", data, "--save", "EXP", "--single_gpu", "--log-interval", "5", *sizes]
    assert main([*command, "--preset", "wt2", "--dropouti", "0.1"]) == 0
    said = capsys.readouterr()
    assert "--single_gpu has no effect on a training" in said.err
    assert "training of a recurrent cell of 6 units, vocabulary 13" in said.out
    (folder,) = tmp_path.glob("eval-EXP-*")
    own = load_checkpoint(folder, "train-rnn")["config"]
    assert (own["dropouth"], own["wdecay"], own["nhid"], own["dropouti"]) == (0.15, 5e-7, 6, 0.1)
    again = ["train", "rnn", "--config", str(folder / "config.toml"), "--out", "again"]
    assert main(again) == 0
    same(*(load_checkpoint(tmp_path / name, "train-rnn")["model"] for name in (folder, "again")))
    again[-1] = "other"
    assert main([*again, "--preset", "ptb", *sizes[:6]]) == 0  # goes before the file's options
    own = load_checkpoint(tmp_path / "other", "train-rnn")["config"]
    assert (own["dropouth"], own["wdecay"], own["nhid"], own["dropouti"]) == (0.25, 8e-7, 6, 0.1)
    assert main(["train", "rnn", "--resume", str(folder), "--preset", "wt2"]) == 2
    assert "keeps its own options: leave out --preset" in capsys.readouterr().err
    assert main(["train", "cnn", "--resume", str(folder)]) == 2
    assert "is of a `train rnn`, not of a `train cnn`" in capsys.readouterr().err
