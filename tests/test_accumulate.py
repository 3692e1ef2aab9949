"""Gradients added up over parts of a batch, against plain loops of stock torch."""

import copy
from types import SimpleNamespace

import pytest
import torch
from small_runs import OPTIONS, same
from torch import nn

from dartsfast.backends import availability, pretending
from dartsfast.bilevel import VirtualStep, alpha_gradient
from dartsfast.cli import main
from dartsfast.cnn.accumulate import backward
from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
from dartsfast.explain import explain_cnn
from dartsfast.fused.passes import iteration
from dartsfast.search import CNNConfig
from dartsfast.search.cnn import CNNSearch

cpu = availability("cpu")
needs_cpu = pytest.mark.skipif(not cpu.available, reason=cpu.reason)
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]
XI, R, DECAY = 0.1, 0.01, 1e-2
PARTS = {"accumulate": 2, "accumulate_statistics": "part"}


def network(backend="reference", dtype=torch.float64):
    torch.manual_seed(0)
    model = Network(2, 4, 3, nn.CrossEntropyLoss(), 2, 2, backend=backend).to(dtype)
    with torch.no_grad():
        for alpha in model.arch_parameters():
            alpha.copy_(torch.randn(alpha.shape))
    return model


def batch(N, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(N, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (N,), generator=generator)


def summed(model, x, y, sizes):
    """Run ``loss.backward()`` part by part; return the gradients of all weights and alphas."""
    leaves = [*model.parameters(), *model.arch_parameters()]
    for leaf in leaves:
        leaf.grad = None
    for images, labels in zip(x.split(sizes), y.split(sizes), strict=True):
        loss = nn.functional.cross_entropy(model(images), labels)
        (loss * (len(labels) / len(y))).backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def moved(model, directions, length):
    """Return a copy of ``model`` whose weights have gone so far along ``directions``."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for w, d in zip(other.parameters(), directions, strict=True):
            w += length * d
    return other


def by_hand(model, train, valid, sizes, order):
    """Return the alphas' gradients, from equations 6 to 8 on plain loops."""
    count = len(list(model.parameters()))
    if order == 1:
        return summed(copy.deepcopy(model), *valid, sizes)[count:]
    steps = summed(copy.deepcopy(model), *train, sizes)[:count]
    steps = [g + DECAY * w.detach() for g, w in zip(steps, model.parameters(), strict=True)]
    found = summed(moved(model, steps, -XI), *valid, sizes)
    vector, direct = found[:count], found[count:]
    epsilon = R / torch.cat([v.flatten() for v in vector]).norm()
    plus, minus = (summed(moved(model, vector, sign * epsilon), *train, sizes)[count:] for sign in (1, -1))
    return [d - XI * (p - m) / (2 * epsilon) for d, p, m in zip(direct, plus, minus, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("N", "parts", "sizes"), [(8, 4, [2, 2, 2, 2]), (7, 3, [3, 2, 2])])
def test_the_alphas_gradient_is_that_of_a_plain_loop(N, parts, sizes, order, backend):
    args = SimpleNamespace(momentum=0.9, weight_decay=DECAY, arch_learning_rate=1e-3, arch_weight_decay=0)
    model = network(backend)
    sgd = torch.optim.SGD(model.parameters(), XI, momentum=0.9, weight_decay=DECAY)
    train, valid = batch(N, 1), batch(N, 2)
    before = {name: t.clone() for name, t in model.named_parameters()}
    Architect(model, args, accumulate=parts).step(*train, *valid, XI, sgd, unrolled=order == 2)
    assert all(torch.equal(t, before[name]) for name, t in model.named_parameters())
    wanted = by_hand(network(), train, valid, sizes, order)
    for alpha, gradient in zip(model.arch_parameters(), wanted, strict=True):
        assert torch.allclose(alpha.grad, gradient, rtol=0, atol=1e-9 * gradient.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_gradient_is_that_of_a_plain_loop(backend):
    model, (x, y) = network(backend), batch(7, 1)
    logits, loss = backward(model, x, y, 3)
    found = [leaf.grad for leaf in (*model.parameters(), *model.arch_parameters())]
    stock = network()
    for mine, theirs in zip(found, summed(stock, x, y, [3, 2, 2]), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9 * max(1, theirs.abs().max()))
    for (name, buffer), wanted in zip(model.named_buffers(), stock.buffers(), strict=True):
        assert torch.allclose(buffer, wanted), name  # moved once a part
    again = network()
    wanted = torch.cat([again(part) for part in x.split([3, 2, 2])])
    assert torch.allclose(logits, wanted) and logits.grad_fn is None
    assert torch.allclose(loss, nn.functional.cross_entropy(wanted, y))
    assert not torch.allclose(logits, network()(x))  # whose norms have the statistics of the batch


def test_fewer_images_than_parts_are_as_many_parts():
    model, (x, y) = network(), batch(2, 1)
    backward(model, x, y, 4)
    mine = [p.grad for p in model.parameters()]
    assert all(torch.allclose(a, b) for a, b in zip(mine, summed(network(), x, y, [1, 1]), strict=False))


@pytest.mark.parametrize("method", ["finite_difference", "exact"])
def test_losses_of_parts_add_up(method):
    w, a = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([1.0, 2.0], [0.5, -1.0]))
    parts = [lambda: (a * w**2).sum(), lambda: a.sum() * w[0] ** 3, lambda: a[1] * w.prod()]
    whole = lambda: sum(part() for part in parts)  # noqa: E731
    found = [
        alpha_gradient([w], [a], train, valid, VirtualStep(0.1), method=method)[0]
        for train, valid in ((parts, parts[1:]), (whole, lambda: parts[1]() + parts[2]()))
    ]
    assert torch.allclose(*found, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_a_resumed_search_goes_on_to_the_same_bits(tmp_path, order):
    options = {**OPTIONS["cnn"](tmp_path), "batch_size": 4, "order": order}
    options |= {"accumulate": 2, "accumulate_statistics": "part"}
    searches = [CNNSearch(CNNConfig(**options)) for _ in range(2)]
    iterations = searches[0].iterations()
    next(iterations)
    saved = copy.deepcopy(searches[0].state())
    next(iterations)
    searches[1].load_state(saved)
    next(searches[1].iterations())
    same(*(search.state() for search in searches))


@needs_cpu
def test_passes_take_the_memory_of_a_part_and_the_gradients_so_far(capsys):
    with pretending("cpu"), torch.device("meta"):
        model = network("cpu", torch.float32)
    weights = 4 * sum(w.numel() for w in model.parameters())
    for one, part in zip(
        iteration(model, (4, 3, 8, 8), 2), iteration(model, (4, 3, 8, 8), 2, parts=3), strict=True
    ):
        assert part.times == 3 * one.times and part.peak == one.peak
        assert part.beside - one.beside == (0 if one.of == "alphas" else weights)
    small = {"init_channels": 2, "layers": 3, "image_size": 16, "backend": "cpu"}
    of_parts = {"accumulate": 4, "accumulate_statistics": "part"}
    whole, parts = (explain_cnn(CNNConfig(batch_size=8, **small, **given)) for given in ({}, of_parts))
    assert max(p.kept for p in parts) < 0.5 * max(p.kept for p in whole)
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    words += ["--batch_size", "8", "--accumulate", "4", "--accumulate_statistics", "part"]
    assert main(["explain", "cnn", *words, "--memory", f"{whole[1].peak // 2}B"]) == 0
    assert "memory " in capsys.readouterr().out
    assert main(["explain", "cnn", *words, "--memory", "640KB"]) == 2
    assert "or accumulate in more parts, of 1 images at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 5}, "accumulate must divide batch_size, 64 images"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"method": "gdas", **PARTS}, "--method gdas draws another for every part"),
        ({"smooth": 0.3, **PARTS}, "--smooth draws another"),
        ({"sync_bn": True, "backend": "reference", **PARTS}, "sync_bn takes statistics over all"),
    ],
)
def test_what_cannot_be_accumulated_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        CNNConfig(**changes).check()
