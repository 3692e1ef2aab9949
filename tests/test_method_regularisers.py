"""Auxiliary skip connections and adversarial smoothing against plain torch, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from op_backends import needs_kernels
from torch import nn

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from small_runs import cnn_options, same, stopped_and_resumed
from test_methods import DARTS, batches, forward, gap, started

from dartsfast.errors import InputError
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.search import CNNConfig, search_cnn

BACKENDS = ["reference", pytest.param("cpu", marks=needs_kernels)]


def skipping(beta):
    def edge(operations, x, row):
        *own, auxiliary = operations._ops
        assert len(own) == len(row)
        return beta * auxiliary(x) + sum(w * op(x) for w, op in zip(row, own, strict=True))

    return edge


@pytest.mark.parametrize("backend", BACKENDS)
def test_auxiliary_skips_against_plain_torch(tmp_path, backend):
    search = started(tmp_path, "darts", backend=backend, auxiliary_skip=True, epochs=4)
    search.model.begin_epoch(1, 4)
    twin, plain = copy.deepcopy(search.model), DARTS()
    twin._backend = "reference"
    sgd = torch.optim.SGD(twin.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    alphas = list(twin.arch_parameters())
    adam = torch.optim.Adam(alphas, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    for x, y, xv, yv in batches(2):
        logits, _ = search.iteration(x, y, xv, yv)
        loss = F.cross_entropy(forward(twin, xv, plain.rows(twin), skipping(0.75)), yv)
        for alpha, gradient in zip(alphas, torch.autograd.grad(loss, alphas), strict=True):
            alpha.grad = gradient
        adam.step()
        sgd.zero_grad()
        wanted = forward(twin, x, plain.rows(twin), skipping(0.75))
        F.cross_entropy(wanted, y).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 5.0)
        sgd.step()
        assert gap(logits, wanted) < 1e-10
    ours = search.model.state_dict()
    for name, value in twin.state_dict().items():
        assert gap(ours[name].double(), value.double()) < 1e-9, name


def test_what_stands_beside_an_edge(tmp_path):
    model = started(tmp_path, "darts", auxiliary_skip=True).model
    for cell in model.cells:
        for place, edge in enumerate(cell._ops):
            strided = cell.reduction and place in (0, 1, 2, 3, 5, 6, 9, 10)
            assert type(edge._ops[-1]).__name__ == ("FactorizedReduce" if strided else "Identity")
    betas = []
    for epoch in range(4):
        model.begin_epoch(epoch, 4)
        betas.append(model.mixing_weights([False])[0][:, -1].unique().tolist())
    assert betas == [[1.0], [0.75], [0.5], [0.25]]
    assert model.strengths(False).shape == (14, 8) and type(model.new()) is type(model)


def by_hand(twin, x, y, epsilon):
    """Return the mixing weights of the ascent, drawn from torch's generator as it stands."""

    def cut(found):
        found = {kind: rows.clamp(0, 1) for kind, rows in found.items()}
        return {kind: rows / rows.sum(-1, keepdim=True) for kind, rows in found.items()}

    clean = {kind: rows.detach() for kind, rows in DARTS().rows(twin).items()}
    drawn = {kind: rows + (2 * torch.rand_like(rows) - 1) * epsilon for kind, rows in clean.items()}
    near = cut(drawn)
    twin.eval()
    for _ in range(7):
        leaves = {kind: rows.clone().requires_grad_() for kind, rows in near.items()}
        loss = F.cross_entropy(forward(twin, x, leaves), y)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        for (kind, rows), slope in zip(clean.items(), slopes, strict=True):
            there = leaves[kind].detach() + 2 * epsilon / 7 * slope.sign()
            near[kind] = torch.minimum(torch.maximum(there, rows - epsilon), rows + epsilon)
        near = cut(near)
    with torch.no_grad():
        first, last = (F.cross_entropy(forward(twin, x, rows), y) for rows in (clean, near))
    twin.train()
    return clean if last < first else near, (last - first).item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_adversarial_smoothing_against_plain_torch(tmp_path, backend):
    options = {"smooth": 0.3, "smooth_by": "adversary", "epochs": 10, "backend": backend}
    search = started(tmp_path, "darts", warmup_epochs=9, **options)
    search.epoch = 4
    with torch.no_grad():
        for alpha in search.model.arch_parameters():
            alpha.normal_()
    search.model(batches(1)[0][0])  # running statistics that evaluation can go by
    twin = copy.deepcopy(search.model)
    twin._backend = "reference"
    x, y, xv, yv = batches(1)[0]
    torch.manual_seed(5)
    rows, gain = by_hand(twin, x, y, 0.03 + 0.27 * 4 / 10)
    assert gain > 0
    wanted = forward(twin, x, rows)
    torch.manual_seed(5)
    logits, loss = search.iteration(x, y, xv, yv)
    assert gap(logits, wanted) < 1e-9
    assert abs(loss - F.cross_entropy(wanted, y)) < 1e-9
    assert search.model._adjust is None and search.model.training
    for name, buffer in twin.named_buffers():
        assert gap(dict(search.model.named_buffers())[name].double(), buffer.double()) < 1e-9, name


def test_an_ascent_that_finds_nothing_worse_stays_where_it_was(tmp_path, monkeypatch):
    search = started(tmp_path, "darts", smooth=0.3, smooth_by="adversary", warmup_epochs=1)
    model, (x, y, *_) = search.model, batches(1)[0]
    model(x)
    wanted = copy.deepcopy(model)(x)
    loss = model._loss
    monkeypatch.setattr(model, "_loss", lambda *batch: -loss(*batch))  # what raises this lowers that
    from dartsfast.methods import smooth_darts

    monkeypatch.setattr(smooth_darts, "_sign", lambda slope: -slope.sign())
    with smooth_darts.smoothed(model, 0.1, (x, y)):
        assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("given", [{"auxiliary_skip": True}, {"smooth": 0.3, "smooth_by": "adversary"}])
def test_a_stopped_search_goes_on_to_the_same_bits(tmp_path, undrawn, given):
    options = {**cnn_options(tmp_path), "backend": "reference", "layers": 1, "space": "s2", "epochs": 3}
    search_cnn(CNNConfig(**options, **given, out=str(tmp_path / "whole")))
    stopped_and_resumed({**options, **given}, tmp_path / "parts", [(0, 1), (2, 1)])
    same(*(load_checkpoint(tmp_path / name, "cnn") for name in ("whole", "parts")))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"smooth_by": "adversary"}, "smooth_by adversary needs a radius"),
        ({"auxiliary_skip": True, "method": "drnas"}, "auxiliary_skip is of --method darts"),
        ({"auxiliary_skip": True, "smooth": 0.3}, "without --smooth"),
        ({"smooth": 0.01}, "smooth grows from 0.03"),
        ({"method": "gdas", "gdas_tau_min": 20.0}, "falls from gdas_tau_max"),
    ],
)
def test_options_that_cannot_work(given, message):
    with pytest.raises(InputError, match=message):
        CNNConfig(**given).check()


@needs_kernels
def test_what_explain_says_of_methods():
    from dartsfast.explain import explain_cnn, total

    sizes = {"init_channels": 4, "layers": 2, "batch_size": 2, "image_size": 8, "backend": "cpu"}
    work = {
        name: total(explain_cnn(CNNConfig(**sizes, **given))[0].runs).operations
        for name, given in (
            ("darts", {}),
            ("gdas", {"method": "gdas"}),
            ("aside", {"auxiliary_skip": True}),
        )  # fmt: skip
    }
    assert work["darts"] == work["gdas"] < work["aside"]
    for given in ({"method": "pc-darts"}, {"method": "p-darts", "epochs": 75}):
        with pytest.raises(InputError, match=f"the edges of --method {given['method']}"):
            explain_cnn(CNNConfig(**sizes, **given))
    with pytest.raises(InputError, match="are not explained"):
        explain_cnn(CNNConfig(**sizes, smooth=0.3, smooth_by="adversary"))
