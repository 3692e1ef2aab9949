"""The bilevel engine: true products, weights put back to the bit, statistics and randomness as documented."""

import copy
import os
import signal
import threading

import pytest
import torch
from bilevel_problems import PROBLEMS, BoomError, bits, cnn_problem, rnn_problem, same_bits
from golden_inputs import cnn, cnn_batches, load

from dartsfast.bilevel import VirtualStep, alpha_gradient, hvp, preserved
from dartsfast.bilevel.guard import interruptible
from dartsfast.cnn.architect import Architect as CNNArchitect
from dartsfast.errors import DivergedError, InputError
from dartsfast.rnn.model import ACTIVATIONS


@pytest.fixture(autouse=True)
def ctrl_c_strikes():
    """A test run in the background of a shell starts with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def optimizer_bits(optimizer):
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("preset", ["code", "paper"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_step_leaves_weights_and_optimizer_to_the_bit(kind, preset, unrolled):
    model, optimizer, _, train, _, step = PROBLEMS[kind](preset)
    train().backward()
    optimizer.step()  # momentum buffers exist
    optimizer.zero_grad()
    weights, state, alphas = (
        bits(model.parameters()),
        optimizer_bits(optimizer),
        bits(model.arch_parameters()),
    )
    step(unrolled)
    assert same_bits(weights, model.parameters())
    assert all(p.grad is None for p in model.parameters())
    after = optimizer_bits(optimizer)
    assert after["param_groups"] == state["param_groups"]
    assert after["state"].keys() == state["state"].keys()
    for key, entry in state["state"].items():
        for name, value in entry.items():
            assert value is None or torch.equal(value, after["state"][key][name])
    assert not same_bits(alphas, model.arch_parameters())


def test_an_optimizer_without_state_gets_none():
    _, optimizer, _, _, _, step = cnn_problem()
    step(True)
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("kind", PROBLEMS)
def test_frozen_weights_and_alphas_take_no_part(kind):
    """As if the frozen ones were constants of the loss."""
    model, _, _, train, valid, step = PROBLEMS[kind]()
    weights, alphas = list(model.parameters()), model.arch_parameters()
    frozen = weights[1::3]
    for w in frozen:
        w.requires_grad_(False)
    before = bits(frozen)
    learning = [w for w in weights if w.requires_grad]
    virtual = VirtualStep(lr=0.1, weight_decay=0.3)
    torch.manual_seed(0)
    wanted = alpha_gradient(learning, alphas, train, valid, virtual)
    torch.manual_seed(0)
    for got, g in zip(alpha_gradient(weights, alphas, train, valid, virtual), wanted, strict=True):
        torch.testing.assert_close(got, g, rtol=1e-11, atol=1e-13)  # a longer vector has a norm of other bits
    assert same_bits(before, frozen)
    alphas[0].requires_grad_(False)
    step(True)
    assert alphas[0].grad is None


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_pass_that_raises_half_way_leaves_the_weights_to_the_bit(kind, at):
    model, optimizer, _, _, _, step = PROBLEMS[kind]()
    weights, calls = bits(model.parameters()), 0
    stray = bits(model.buffers())

    def hook(module, inputs):
        nonlocal calls
        calls += 1
        if calls == at:
            raise BoomError

    handle = model.register_forward_pre_hook(hook)
    with pytest.raises(BoomError):
        step(True)
    handle.remove()
    assert calls == at
    assert same_bits(weights, model.parameters())
    assert len(optimizer.state) == 0
    if at <= 1:
        assert same_bits(stray, model.buffers())


def test_ctrl_c_in_the_middle_of_a_pass_leaves_the_weights_to_the_bit():
    model, _, _, _, _, step = cnn_problem()
    weights = bits(model.parameters())
    for delay in (0.05, 0.15, 0.3, 0.45):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                for _ in range(100):
                    step(True)
        finally:
            timer.cancel()
        assert same_bits(weights, model.parameters())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_waits_until_everything_is_restored():
    values = [torch.zeros(1000) for _ in range(3)]
    with pytest.raises(KeyboardInterrupt), preserved(values):
        for value in values:
            value.fill_(float("nan"))
        with pytest.raises(KeyboardInterrupt):
            interruptible(lambda: signal.raise_signal(signal.SIGINT))
        signal.raise_signal(signal.SIGINT)  # held back
        values[0].fill_(1.0)
    assert all(torch.equal(v, torch.zeros(1000)) for v in values)


def test_ctrl_c_on_the_way_out_waits_for_the_restoring():
    value = torch.zeros(3)
    block = preserved([value])
    block.__enter__()
    value.fill_(1.0)
    signal.raise_signal(signal.SIGINT)  # the body is over, the restoring has not begun
    with pytest.raises(KeyboardInterrupt):
        block.__exit__(None, None, None)
    assert torch.equal(value, torch.zeros(3))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def tracked(model):
    return {name: int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(("unrolled", "passes"), [(False, 1), (True, 3)])
def test_running_statistics_take_the_original_passes(unrolled, passes):
    model, _, _, _, _, step = cnn_problem()
    step(unrolled)
    assert set(tracked(model).values()) == {passes}


def test_paper_preset_moves_all_weights_and_clamps(monkeypatch):
    """The whole step against equations 6 to 8 written out with the exact product."""
    monkeypatch.setitem(ACTIVATIONS, "relu", lambda x: torch.nn.functional.softplus(x, beta=4))
    model, _, _, train, valid, step = rnn_problem("paper")
    lr, clip, decay = 2.0, 0.25, 5e-7
    weights, alphas = list(model.parameters()), model.arch_parameters()
    at = bits(weights)
    gradients = torch.autograd.grad(train(), weights)
    factor = min(1.0, (clip / torch.cat([g.flatten() for g in gradients]).norm()).item())
    with torch.no_grad():
        for w, g in zip(weights, gradients, strict=True):
            w -= lr * (factor * g + decay * w)
    *vector, direct = torch.autograd.grad(valid(), [*weights, *alphas])
    with torch.no_grad():
        for w, value in zip(weights, at, strict=True):
            w.copy_(value)
    (implicit,) = hvp(train, weights, vector, alphas, method="exact")
    step(True)
    expected = direct - lr * factor * implicit
    error = ((model.weights.grad - expected).norm() / expected.norm()).item()
    assert error < 1e-3, error  # the finite difference's own error at r = 0.01
    assert (direct - expected).norm() / expected.norm() > 10 * error  # the implicit term matters


def test_presets_differ_where_they_say():
    def gradient(preset):
        model, _, _, _, _, step = rnn_problem(preset)
        step(True)
        return model.weights.grad

    assert not torch.allclose(gradient("code"), gradient("paper"))
    with pytest.raises(InputError, match="unknown preset"):
        rnn_problem("book")


@pytest.mark.parametrize(("preset", "draws"), [("code", 4), ("paper", 3)])
def test_dropout_masks_of_the_two_passes(preset, draws):
    """The code redraws masks for the second pass, the paper preset runs both passes on one mask."""
    model, _, _, train, _, step = rnn_problem(preset, dropouth=0.25, dropoutx=0.5)
    torch.manual_seed(0)
    step(True)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    for _ in range(draws):
        train()
    assert torch.equal(after, torch.get_rng_state())


def test_one_mask_gives_the_exact_product_under_dropout():
    model, _, _, train, valid, _ = rnn_problem("paper", dropouth=0.25, dropoutx=0.5)
    weights, alphas = list(model.parameters()), model.arch_parameters()
    torch.manual_seed(1)
    vector = torch.autograd.grad(valid(), weights)
    torch.manual_seed(2)
    (exact,) = hvp(train, weights, vector, alphas, method="exact")
    torch.manual_seed(2)
    (one_mask,) = hvp(train, weights, vector, alphas, r=1e-4, same_randomness=True)
    torch.manual_seed(2)
    (two_masks,) = hvp(train, weights, vector, alphas, r=1e-4)
    assert (one_mask - exact).norm() < 1e-4 * exact.norm()
    assert (two_masks - exact).norm() > exact.norm()


def test_virtual_step_takes_part_in_momentum():
    """alpha_gradient evaluates the validation loss where SGD's own step would take the weights."""
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.3, 0.7], dtype=torch.float64)
    train = lambda: (a * (w - target) ** 2).sum()  # noqa: E731
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.01)
    train().backward()
    optimizer.step()
    seen = []

    def valid():
        seen.append(w.detach().clone())
        return (a * w).sum()

    buffers = [optimizer.state[w]["momentum_buffer"]]
    virtual = VirtualStep(lr=0.1, momentum=0.9, weight_decay=0.01, momentum_buffers=buffers)
    alpha_gradient([w], [a], train, valid, virtual)
    optimizer.zero_grad()
    train().backward()
    optimizer.step()
    torch.testing.assert_close(seen[0], w.detach())


def test_an_alpha_that_only_the_training_loss_sees_has_its_implicit_gradient():
    w = torch.tensor([1.0], requires_grad=True)
    a = torch.tensor([2.0], requires_grad=True)
    # w' = w (1 - 2 lr a^2) = 0.2, v = 2 w' = 0.4, d2L/(da dw) = 4 a w = 8: the gradient is -0.1 * 8 * 0.4
    (gradient,) = alpha_gradient(
        [w], [a], lambda: (w * a).sum() ** 2, lambda: (w**2).sum(), VirtualStep(lr=0.1)
    )
    torch.testing.assert_close(gradient, torch.tensor([-0.32]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_validation_batch_of_nan_leaves_the_alphas_alone(unrolled):
    model, optimizer, architect, _, _, _ = cnn_problem()
    x, y, xv, yv = cnn_batches(load("cnn_a2")["config"], 0)
    alphas = bits(model.arch_parameters())
    with pytest.raises(DivergedError):
        architect.step(x, y, xv * float("nan"), yv, 0.025, optimizer, unrolled)
    assert same_bits(alphas, model.arch_parameters())
    assert not architect.optimizer.state


def test_alphas_that_the_loss_does_not_see_get_no_gradient():
    w = torch.ones(2, requires_grad=True)
    used, unused = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    loss = lambda: (used * w**2).sum()  # noqa: E731
    for virtual in (None, VirtualStep(lr=0.1)):
        gradients = alpha_gradient([w], [used, unused], loss, loss, virtual)
        assert gradients[0] is not None
        assert gradients[1] is None


class Penalised(CNNArchitect):
    """A script's own first order: the original's, with a penalty on the alphas."""

    def _backward_step(self, input_valid, target_valid):
        loss = self.model._loss(input_valid, target_valid)
        (loss + 10 * sum(a.square().sum() for a in self.model.arch_parameters())).backward()

    def _backward_step_unrolled(self, *args):
        super()._backward_step_unrolled(*args)
        for alpha in self.model.arch_parameters():
            alpha.grad += 20 * alpha.detach()


@pytest.mark.parametrize("unrolled", [False, True])
def test_what_an_architect_overrides_is_done(unrolled):
    config = load("cnn_a2")["config"]
    x, y, xv, yv = cnn_batches(config, 0)
    gradients = []
    for kind in (CNNArchitect, Penalised):
        model, optimizer, args = cnn(config, backend="reference")
        before = bits(model.arch_parameters())
        for _ in range(2):  # nothing is left of the first step's gradients
            for alpha, value in zip(model.arch_parameters(), before, strict=True):
                alpha.data.copy_(value)
            kind(model, args).step(x, y, xv, yv, 0.025, optimizer, unrolled)
        gradients.append([a.grad for a in model.arch_parameters()])
    for plain, got, alpha in zip(*gradients, before, strict=True):
        torch.testing.assert_close(got, plain + 20 * alpha, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["_hessian_vector_product", "_compute_unrolled_model", "_construct_model_from_theta"]
)
def test_steps_of_the_original_that_would_not_be_called_are_refused(name):
    config = load("cnn_a2")["config"]
    batches = cnn_batches(config, 0)
    model, optimizer, args = cnn(config, backend="reference")
    architect = type("Mine", (CNNArchitect,), {name: lambda self, *args: None})(model, args)
    with pytest.raises(InputError, match=rf"Mine.{name} would never be called.*_backward_step_unrolled"):
        architect.step(*batches, 0.025, optimizer, unrolled=True)
    architect.step(*batches, 0.025, optimizer, unrolled=False)  # where the original calls none either
