"""Networks on the meta device, without values, and back; copies, precisions and shared memory with them."""

import copy
import pickle

import pytest
import torch
from comparisons import same_bits
from torch import nn

from dartsfast.cnn.genotypes import DARTS_V2
from dartsfast.cnn.model import NetworkCIFAR, NetworkImageNet
from dartsfast.cnn.model_search import Network
from dartsfast.rnn import genotypes
from dartsfast.rnn.model import RNNModel
from dartsfast.rnn.model_search import RNNModelSearch

NETWORKS = {
    "search_cnn": lambda: Network(2, 3, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2),
    "search_rnn": lambda: RNNModelSearch(20, 6, 6, 6),
    "cifar": lambda: NetworkCIFAR(2, 3, 3, True, DARTS_V2),
    "imagenet": lambda: NetworkImageNet(2, 3, 3, True, DARTS_V2),
    "rnn": lambda: RNNModel(20, 6, 6, 6, genotype=genotypes.DARTS_V2),
}
pytestmark = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)


def tensors(model):
    alphas = model.arch_parameters() if hasattr(model, "arch_parameters") else []
    return [*model.parameters(), *model.buffers(), *alphas]


def assert_whole(model):
    """Check that all of a network reads the same alphas, which can be trained, and the same tied weights."""
    for alpha in model.arch_parameters() if hasattr(model, "arch_parameters") else []:
        assert alpha.is_leaf and alpha.requires_grad
    if isinstance(model, RNNModelSearch):
        assert model.weights is model.arch_parameters()[0] and all(
            rnn.weights is model.weights for rnn in model.rnns
        )
    if isinstance(model, RNNModel):
        assert model.decoder.weight is model.encoder.weight


def loaded(model, values, **options):
    model.load_state_dict(values, **options)
    assert_whole(model)
    assert same_bits(list(model.state_dict().values()), list(values.values()))


def test_to_meta_and_back(build):
    model = build()
    values = copy.deepcopy(model.state_dict())
    assert_whole(model.to("meta"))
    assert all(t.device.type == "meta" for t in tensors(model))
    assert all(t.device.type == "meta" for t in model.state_dict().values())
    model.to_empty(device="cpu")
    assert all(t.device.type == "cpu" for t in tensors(model))
    loaded(model, values)


def test_built_on_meta(build):
    values = build().state_dict()
    with torch.device("meta"):
        model = build()
    assert all(t.device.type == "meta" for t in tensors(model))
    assert_whole(model)
    loaded(model.to_empty(device="cpu"), values)
    with torch.device("meta"):
        model = build()
    loaded(model, values, assign=True)


def test_a_network_stays_whole_where_what_is_loaded_does_not_fit(build):
    model, values = build(), copy.deepcopy(build().state_dict())
    del values[[name for name, _ in model.named_parameters()][-1]]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(values, assign=True)
    assert_whole(model)


def test_gradients_and_frozen_alphas_go_along(build):
    model = build()
    for t in tensors(model):
        if t.requires_grad:
            t.grad = torch.ones_like(t)
    first = tensors(model)[-1]
    first.requires_grad_(False)
    model.to("meta")
    assert not tensors(model)[-1].requires_grad
    assert all(t.grad is None or t.grad.device.type == "meta" for t in tensors(model))


@pytest.mark.parametrize("change", ["half", "double", "bfloat16", "share_memory"])
def test_in_place_changes_keep_the_alphas(build, change):
    model = build()
    before = [t for t in tensors(model) if t.requires_grad]
    getattr(model, change)()
    assert_whole(model)
    assert all(a is b for a, b in zip(before, [t for t in tensors(model) if t.requires_grad], strict=True))
    if change == "share_memory":
        assert all(t.is_shared() for t in tensors(model) if t.numel())
    else:
        dtype = getattr(torch, {"half": "float16", "double": "float64"}.get(change, change))
        assert all(t.dtype == dtype for t in tensors(model) if t.is_floating_point())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_on_meta(build, copied):
    model = copied(build().to("meta"))
    assert_whole(model)
    assert all(t.device.type == "meta" for t in tensors(model))
