"""The RNN search cell on the CPU kernels against the reference path: values, bits, what is kept."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dartsfast.backends import availability
from dartsfast.bilevel import hvp
from dartsfast.errors import InputError
from dartsfast.fused.loss import slowness
from dartsfast.rnn import fused
from dartsfast.rnn import model as rnn_model
from dartsfast.rnn.architect import Architect
from dartsfast.rnn.genotypes import STEPS
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.rnn.utils import LockedDropout

_cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not _cpu.available, reason=_cpu.reason)

VOCABULARY = 50
DROPOUTS = {"dropout": 0.5, "dropouth": 0.25, "dropoutx": 0.4, "dropouti": 0.3, "dropoute": 0.1}
DRY = dict.fromkeys(DROPOUTS, 0.0)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(backend, dtype=torch.float64, H=12, memory="store", dropouts=DROPOUTS, scale=0.5):
    """Return a model with large weights, so that the candidates differ, or with those of a new model."""
    torch.manual_seed(0)
    model = RNNModelSearch(VOCABULARY, H, H, H, **dropouts, backend=backend, memory=memory)
    torch.manual_seed(0)  # weights that do not depend on how many numbers a new model draws
    with torch.no_grad():
        for weight in [*model.parameters(), *model.arch_parameters()] if scale else []:
            weight.copy_(scale * torch.randn(weight.shape))
    return model.to(dtype)


def text(T=5, B=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (2, T, B), generator=generator)


def search(model, iterations, order=1, preset="code"):
    """Run search iterations; return every float that they left behind, by name."""
    sgd = torch.optim.SGD(model.parameters(), 2.0, weight_decay=5e-7)
    args = SimpleNamespace(wdecay=5e-7, clip=0.25, arch_lr=3e-3, arch_wdecay=1e-3)
    architect = Architect(model, args, preset=preset)
    hidden = hidden_valid = model.init_hidden(6)
    torch.manual_seed(3)
    for i in range(iterations):
        (x, y), valid = text(seed=2 * i), text(seed=2 * i + 1)
        hidden_valid, _ = architect.step(hidden, x, y, hidden_valid, *valid, sgd, order == 2)
        sgd.zero_grad()
        loss, hidden, (raw,) = model(x, hidden, target=y)
        (loss + 1e-3 * (raw[1:] - raw[:-1]).pow(2).mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        sgd.step()
        hidden = [h.detach() for h in hidden]
    state = dict(model.state_dict())
    state |= {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return {**state, "weights.grad": model.weights.grad, "hidden": hidden[0], "valid": hidden_valid[0]}


def relative(a, b):
    return ((a - b).double().norm() / b.double().norm().clamp_min(1e-6)).item()


def test_auto_takes_the_kernels_on_a_cpu():
    assert RNNModelSearch(VOCABULARY, 8, 8, 8).backend == "cpu"
    with pytest.warns(UserWarning, match="float32 and float64, not torch.bfloat16"):
        assert RNNModelSearch(VOCABULARY, 8, 8, 8).bfloat16().backend == "reference"


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("preset", ["code", "paper"])
def test_state_after_iterations_is_that_of_stock_modules(memory, order, preset):
    wanted = search(network("reference"), 3, order, preset)
    got = search(network("cpu", memory=memory), 3, order, preset)
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert relative(value, wanted[name]) < (1e-10 if order == 1 else 1e-7), name


def test_fifty_first_order_iterations_agree_to_1e_7():
    ours, theirs = network("cpu", scale=None), network("reference", scale=None)
    got, wanted = search(ours, 50), search(theirs, 50)
    assert relative(got["weights"], wanted["weights"]) < 1e-7
    assert ours.genotype() == theirs.genotype()


def test_the_paper_step_against_its_equations():
    """Equations 6 to 8 with plain tensors and the losses of the reference path."""
    ours, theirs = (network(backend, dropouts=DRY) for backend in ("cpu", "reference"))
    lr, clip, decay, r = 2.0, 0.25, 5e-7, 0.01
    sgd = torch.optim.SGD(ours.parameters(), lr)
    args = SimpleNamespace(wdecay=decay, clip=clip, arch_lr=3e-3, arch_wdecay=0.0)
    train, valid, hidden = text(seed=5), text(seed=6), theirs.init_hidden(6)
    Architect(ours, args, preset="paper").step(hidden, *train, hidden, *valid, sgd, True)
    weights = list(theirs.parameters())
    start = [w.detach().clone() for w in weights]

    def at(values, batch, wrt):
        with torch.no_grad():
            for w, value in zip(weights, values, strict=True):
                w.copy_(value)
        return torch.autograd.grad(theirs._loss(hidden, *batch)[0], wrt)

    g = at(start, train, weights)
    factor = min(1.0, (clip / (torch.cat([t.flatten() for t in g]).norm() + 1e-6)).item())
    moved = [w - lr * (factor * d + decay * w) for w, d in zip(start, g, strict=True)]
    *v, direct = at(moved, valid, [*weights, theirs.weights])
    R = r / torch.cat([t.flatten() for t in v]).norm()
    plus, minus = (
        at([w + sign * R * t for w, t in zip(start, v, strict=True)], train, [theirs.weights])[0]
        for sign in (1, -1)
    )
    expected = direct - lr * factor * (plus - minus) / (2 * R)
    assert factor < 1 and relative(direct, expected) > 1e-3  # both terms matter
    assert relative(ours.weights.grad, expected) < 1e-8


@pytest.mark.parametrize("training", [True, False])
def test_log_probabilities_hidden_states_and_loss(training):
    x, y = text()

    def run(backend):
        model = network(backend, dropouts=DRY).train(training)
        log_probs, hidden = model(x, model.init_hidden(6))
        return log_probs, hidden[0], model._loss(hidden, x, y)[0]

    for got, wanted in zip(run("cpu"), run("reference"), strict=True):
        assert relative(got, wanted) < 1e-12


def bits(threads, memory, order):
    torch.set_num_threads(threads)
    return search(network("cpu", torch.float32, H=40, memory=memory), 2, order)


@pytest.mark.parametrize("order", [1, 2])
def test_same_bits_for_any_number_of_threads_and_either_memory(order):
    runs = [(1, "store"), (2, "store"), (3, "store"), (3, "store"), (2, "recompute")]
    first, *others = [bits(threads, memory, order) for threads, memory in runs]
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in first.items())


@pytest.mark.parametrize(("H", "T"), [(48, 10), (76, 35)])
def test_float32_is_as_near_to_float64_as_stock_modules(H, T):
    def run(backend, dtype):
        model = network(backend, dtype, H=H, dropouts=DRY, scale=None)
        x, y = text(T=T, B=32)
        loss, _, (raw,) = model(x, model.init_hidden(32), target=y)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        return [t.detach().double() for t in (raw, gradients, model.weights.grad)]

    truth = run("reference", torch.float64)
    theirs = [relative(a, b) for a, b in zip(run("reference", torch.float32), truth, strict=True)]
    ours = [relative(a, b) for a, b in zip(run("cpu", torch.float32), truth, strict=True)]
    for name, our, their in zip(
        ("outputs", "weight gradients", "alpha gradients"), ours, theirs, strict=True
    ):
        assert our <= 1.5 * their, f"{name}: {our:.2e} against {their:.2e}"


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("mask", [True, False])
def test_gradcheck_of_the_recurrence(kept, mask):
    torch.manual_seed(0)
    T, B, H, ninp = 2, 3, 2, 3
    norm = nn.BatchNorm1d(H, affine=False, track_running_stats=False)
    shapes = [(T, B, ninp), (B, H), (STEPS * (STEPS + 1) // 2, 4), (ninp + H, 2 * H), *[(H, 2 * H)] * STEPS]
    x, hidden, weights, W0, *Ws = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    dropped = torch.tensor([[0.0, 2.0]] * B, dtype=torch.float64) if mask else None

    def run(x, hidden, weights, W0, *Ws):
        return fused.recurrence(norm, kept, x, hidden, dropped, weights, W0, list(Ws))

    assert torch.autograd.gradcheck(run, (x, hidden, weights, W0, *Ws))


class Sizes(TorchDispatchMode):
    """The largest number of elements of any tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.largest = max(
            self.largest, *[t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)], 0
        )
        return out


@pytest.mark.parametrize(("backend", "whole"), [("cpu", False), ("reference", True)])
def test_the_loss_never_holds_all_logits(monkeypatch, backend, whole):
    monkeypatch.setattr(rnn_model, "LOSS_CHUNK", 8)
    monkeypatch.setitem(globals(), "VOCABULARY", 2000)
    model = network(backend)
    (x, y), hidden = text(), model.init_hidden(6)
    with Sizes() as sizes:
        model._loss(hidden, x, y)[0].backward()
    assert (sizes.largest >= x.numel() * 2000) == whole
    assert sizes.largest >= 2000 * 12  # the gradient of the decoder was seen


def kept_bytes(model):
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model._loss(model.init_hidden(32), *text(T=12, B=32))
    return sum(seen.values())


def test_kept_for_the_backward():
    kept = {
        (backend, memory): kept_bytes(network(backend, torch.float32, H=64, memory=memory))
        for backend, memory in [("reference", "store"), ("cpu", "store"), ("cpu", "recompute")]
    }
    assert kept["cpu", "store"] < kept["reference", "store"] / 5
    assert kept["cpu", "recompute"] < kept["cpu", "store"] / 10


def test_slowness_has_the_bits_of_stock_operators():
    for T, dtype in ((2, torch.float32), (7, torch.float32), (5, torch.float64)):
        stock = torch.randn(T, 3, 13, dtype=dtype).requires_grad_()
        fused = stock.detach().clone().requires_grad_()
        expected, found = (stock[1:] - stock[:-1]).pow(2).mean(), slowness(fused)
        (1e-3 * expected).backward()
        (1e-3 * found).backward()
        assert torch.equal(found, expected) and torch.equal(fused.grad, stock.grad)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_hidden_state_is_all_that_is_kept_of_a_text(backend):
    model = network(backend)
    tokens, _ = text()
    _, hidden = model(tokens, model.init_hidden(tokens.size(1)))
    assert hidden[0].untyped_storage().nbytes() == hidden[0].numel() * hidden[0].element_size()


def test_the_engine_asks_for_what_it_uses(monkeypatch):
    asked = []
    backward = fused._Cell.backward

    def spy(self, *args):
        asked.append(args[-1] is not None)
        return backward(self, *args)

    monkeypatch.setattr(fused._Cell, "backward", spy)
    model = network("cpu")
    sgd = torch.optim.SGD(model.parameters(), 2.0)
    architect = Architect(model, SimpleNamespace(wdecay=0, clip=0.25, arch_lr=1e-3, arch_wdecay=0))
    hidden = model.init_hidden(6)
    architect.step(hidden, *text(), hidden, *text(), sgd, False)
    assert asked == [False] * 5
    asked.clear()
    architect.step(hidden, *text(), hidden, *text(), sgd, True)
    # virtual step and validation gradient ask for weight gradients, the two finite-difference passes do not
    assert asked == [True] * 10 + [False] * 10


def test_a_decoder_that_is_more_than_linear_runs_as_it_is():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    (x, y), losses, seen = text(), {}, []
    for backend in ("reference", "cpu"):
        model = network(backend, dropouts=DRY)
        handle = model.decoder.register_forward_hook(lambda module, args, out: seen.append(out))
        plain = model(x, model.init_hidden(6), target=y)[0]
        handle.remove()
        doubled = Doubled(*reversed(model.decoder.weight.shape), dtype=torch.float64)
        doubled.load_state_dict(model.decoder.state_dict())
        model.decoder = doubled
        losses[backend] = plain.item(), model(x, model.init_hidden(6), target=y)[0].item()
    assert len(seen) == 2
    assert losses["cpu"] == pytest.approx(losses["reference"], rel=1e-12)
    assert losses["cpu"][0] != pytest.approx(losses["cpu"][1])


def test_a_dropout_that_is_more_than_locked_runs_as_it_is():
    class Doubled(LockedDropout):
        def forward(self, x, dropout):
            return 2 * x

    (x, y), losses, seen = text(), {}, []
    for backend in ("reference", "cpu"):
        model = network(backend)
        model.lockdrop.register_forward_hook(lambda module, args, out: seen.append(out))
        torch.manual_seed(5)
        hooked = model(x, model.init_hidden(6), target=y)[0]
        model.lockdrop = Doubled()
        torch.manual_seed(5)
        losses[backend] = hooked.item(), model(x, model.init_hidden(6), target=y)[0].item()
    assert len(seen) == 4  # of the words and of the outputs
    assert losses["cpu"] == pytest.approx(losses["reference"], rel=1e-12)
    assert losses["cpu"][0] != pytest.approx(losses["cpu"][1])


def test_what_dropout_leaves_is_multiplied_alone(monkeypatch):
    """In training with dropout, and in nothing else."""
    called = []
    for name in ("locked_cross_entropy", "linear_cross_entropy"):
        function = getattr(rnn_model, name)
        monkeypatch.setattr(rnn_model, name, lambda *args, f=function, n=name: called.append(n) or f(*args))
    x, y = text()
    for dropouts, training in ((DROPOUTS, True), (DROPOUTS, False), (DRY, True)):
        model = network("cpu", dropouts=dropouts).train(training)
        model(x, model.init_hidden(6), target=y)
    assert called == ["locked_cross_entropy", "linear_cross_entropy", "linear_cross_entropy"]


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_those_of_the_module(momentum, tracked):
    def run(backend):
        model = network(backend)
        model.rnns[0].bn.momentum, model.rnns[0].bn.track_running_stats = momentum, tracked
        for seed in (1, 2):
            torch.manual_seed(0)
            model(text(seed=seed)[0], model.init_hidden(6))
        return list(model.buffers())

    for got, wanted in zip(run("cpu"), run("reference"), strict=True):
        assert relative(got, wanted) < 1e-12


def test_a_batch_of_one_has_no_statistics():
    model = network("cpu")
    x, y = text(B=1)
    with pytest.raises(InputError, match="batch norm over a batch of one"):
        model._loss(model.init_hidden(1), x, y)
    model.eval()
    assert model._loss(model.init_hidden(1), x, y)[0].isfinite()


def test_a_second_derivative_raises():
    model = network("cpu", dropouts=DRY)
    cell, alphas = list(model.rnns[0].parameters()), model.arch_parameters()
    for first, second in ((alphas, alphas), (cell, alphas), (cell, cell), (alphas, cell)):
        out, _ = model(text()[0], model.init_hidden(6))
        found = torch.autograd.grad(out.square().sum(), first, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once.*backend='reference'"):
            torch.autograd.grad(sum(g.sum() for g in found), second)
    x, y = text()
    for params in (cell, list(model.parameters())):
        with pytest.raises((RuntimeError, InputError), match="derivative.*backend='reference'"):
            hvp(lambda: model._loss(model.init_hidden(6), x, y)[0], params, params, alphas, method="exact")


def test_shapes_that_do_not_fit_are_refused():
    model = network("cpu")
    x, y = text(B=6)
    with pytest.raises(InputError, match=r"states \[B, 12\].*got \[5, 6, 12\] and \[5, 12\]"):
        model._loss(model.init_hidden(5), x, y)
    with pytest.raises(InputError, match="T > 0"):
        model._loss(model.init_hidden(6), x[:0], y[:0])


@pytest.mark.parametrize("fused_loss", [True, False])
def test_a_large_vocabulary_has_the_same_bits_for_any_number_of_threads(fused_loss):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model = RNNModelSearch(10_000, 40, 40, 40, backend="cpu")
        words = torch.randint(10_000, (3, 37))
        x, y, hidden = words[:-1], words[1:], model.init_hidden(37)
        if fused_loss:
            loss = model(x, hidden, target=y)[0]
        else:  # as old scripts
            loss = F.nll_loss(model(x, hidden)[0].flatten(0, 1), y.flatten())
        results.append([loss.detach(), *torch.autograd.grad(loss, [*model.parameters(), model.weights])])
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))
