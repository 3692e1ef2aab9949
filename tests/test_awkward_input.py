"""Input that is unusual but possible: few classes, short and periodic texts, shallow networks, no targets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dartsfast.bilevel import VirtualStep
from dartsfast.cnn.genotypes import DARTS
from dartsfast.cnn.model import NetworkCIFAR, NetworkImageNet
from dartsfast.cnn.utils import accuracy
from dartsfast.errors import InputError
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.rnn.utils import batchify


def test_the_top_five_of_three_classes_are_all():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    target = torch.tensor([0, 2, 2, 0])
    top1, top2, top5 = accuracy(logits, target, topk=(1, 2, 5))
    assert (top1.item(), top2.item(), top5.item()) == (50.0, 75.0, 100.0)


@pytest.mark.parametrize(
    ("tokens", "columns", "message"),
    [
        (7, 4, "7 tokens cannot fill 4 columns .*: use a batch size of at most 3 or more text"),
        (1, 4, "1 tokens cannot fill 4 columns with at least two each: use more text$"),
        (9, 0, "batch size must be at least 1, got 0"),
    ],
)
def test_batches_that_texts_cannot_fill(tokens, columns, message):
    with pytest.raises(InputError, match=message):
        batchify(torch.arange(tokens), columns)


@pytest.mark.parametrize(
    ("train", "valid", "message"),
    [
        (11, 40, "train text has 12 tokens, .* 5 columns of 3: use a batch_size of at most 4, or more text"),
        (4, 40, "train text has 5 tokens, .* 5 columns of 3: use more text, at least 15 tokens"),
        # Validation reads 10 columns, whatever the batch size.
        (40, 11, "valid text has 12 tokens, .* 10 columns of 3: use more text, at least 30 tokens"),
        (40, 19, "valid text has 20 tokens, .* 10 columns of 3: use more text, at least 30 tokens"),
    ],
)
def test_short_texts_are_told_what_helps(tmp_path, train, valid, message):
    search = pytest.importorskip("dartsfast.search.rnn")
    for part, words in (("train", train), ("valid", valid), ("test", 5)):
        (tmp_path / f"{part}.txt").write_text("w " * words)
    config = search.RNNConfig(data=str(tmp_path), batch_size=5, emsize=8, nhid=8, nhidlast=8)
    with pytest.raises(InputError, match=message):
        search.RNNSearch(config)


@pytest.mark.parametrize("network", [NetworkCIFAR, NetworkImageNet])
@pytest.mark.parametrize("layers", [0, 1])
def test_shallow_networks_have_no_auxiliary_head(network, layers):
    with pytest.raises(InputError, match=f"second of two reduction cells.* {layers} layers: use 2 or more"):
        network(4, 10, layers, True, DARTS)
    network(4, 10, layers, False, DARTS)


def test_two_layers_are_enough_for_an_auxiliary_head():
    assert NetworkCIFAR(4, 10, 2, True, DARTS)(torch.randn(2, 3, 32, 32))[1].shape == (2, 10)


@pytest.mark.parametrize(
    "lr", [0.25, np.float32(0.25), np.float64(0.25), torch.tensor(0.25), torch.tensor([0.25])]
)
def test_a_learning_rate_is_any_number(lr):
    assert VirtualStep(lr=lr).lr == 0.25 and type(VirtualStep(lr=lr).lr) is float


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "max_norm", "vector_max_norm"])
@pytest.mark.parametrize("value", [[0.25], (0.25,), "0.25", True, torch.zeros(2), {}])
def test_what_is_no_number_is_named(name, value):
    with pytest.raises(InputError, match=f"{name} must be one number, got .*get_last_lr"):
        VirtualStep(**{"lr": 0.1, name: value})
    with pytest.raises(InputError, match="lr must be one number, got None"):
        VirtualStep(lr=None)


def test_a_list_as_eta_is_named():
    from dartsfast.cnn.architect import Architect
    from dartsfast.cnn.model_search import Network

    model = Network(4, 3, 2, torch.nn.CrossEntropyLoss(), steps=2, multiplier=2)
    args = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3)
    batch = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match=r"lr must be one number, got \[0.025\]"):
        Architect(model, args).step(*batch, *batch, [0.025], optimizer, unrolled=True)


def small_rnn(backend, words=12):
    torch.manual_seed(0)
    return RNNModelSearch(words, 8, 8, 8, 0, 0, 0, 0, 0, backend=backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_mean_over_no_targets_is_nan_with_gradients_of_zero(backend):
    model = small_rnn(backend)
    x, target = torch.randint(12, (4, 3)), torch.full((4, 3), -100)
    loss, _ = model._loss(model.init_hidden(3), x, target)
    logits = torch.zeros(12, 12)
    assert loss.isnan() and torch.nn.functional.cross_entropy(logits, target.flatten()).isnan()
    loss.backward()
    gradients = [p.grad for p in [*model.parameters(), *model.arch_parameters()]]
    assert all(g is not None and not g.any() for g in gradients)


@pytest.mark.parametrize("batch", [5, 6, 17, 33])
def test_columns_that_are_alike_stay_alike(batch):
    """Batch norm over such columns has no variance, and a difference of a rounding grows 316-fold a node."""
    model = small_rnn("cpu", words=2)
    x = (torch.arange(35) % 2)[:, None].expand(-1, batch).contiguous()
    loss, _, (states,) = model(x, model.init_hidden(batch), target=1 - x)
    assert torch.equal(states, states[:, :1].expand_as(states))
    loss.backward()
    # Every state is zero but for roundings, so the bias of the decoder alone learns.
    assert states.abs().max() < 1e-2 and abs(loss.item() - np.log(2)) < 1e-4
    for name, p in model.named_parameters():
        if name.startswith("rnns"):
            assert p.grad.abs().max() < 1e-3, name
