"""The Hessian-vector product: true, and everything put back to the bit."""

import pytest
import torch
from bilevel_problems import PROBLEMS, BoomError, bits, cnn_problem, same_bits

from dartsfast.bilevel import hvp
from dartsfast.errors import DivergedError, InputError
from dartsfast.rnn.model import ACTIVATIONS


def smooth(model):
    """Swap every kink for something smooth: the order of the error can then be seen at any step."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.Softplus(beta=4))
            if isinstance(child, torch.nn.MaxPool2d):
                setattr(module, name, torch.nn.AvgPool2d(3, child.stride, padding=1))


def relative_errors(model, train, valid, steps):
    weights, alphas = list(model.parameters()), model.arch_parameters()
    vector = torch.autograd.grad(valid(), weights)
    exact = torch.cat([t.flatten() for t in hvp(train, weights, vector, alphas, method="exact")])
    for r in steps:
        product = torch.cat([t.flatten() for t in hvp(train, weights, vector, alphas, r=r)])
        yield ((product - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("kind", PROBLEMS)
def test_the_error_of_the_finite_difference_is_of_second_order(kind, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "relu", lambda x: torch.nn.functional.softplus(x, beta=4))
    model, _, _, train, valid, _ = PROBLEMS[kind]()
    smooth(model)
    errors = list(relative_errors(model, train, valid, (8e-3, 4e-3, 2e-3)))
    assert errors[-1] < 0.01, errors
    for wide, narrow in zip(errors, errors[1:], strict=False):
        assert 3.5 < wide / narrow < 4.5, errors


@pytest.mark.parametrize("kind", PROBLEMS)
def test_finite_difference_agrees_with_the_exact_product_between_kinks(kind):
    # Double backward sees no kink of ReLU or max pooling, a wide difference averages over many: the
    # step must be short enough to cross none.
    model, _, _, train, valid, _ = PROBLEMS[kind]()
    (error,) = relative_errors(model, train, valid, (1e-8,))
    assert error < 1e-4


def test_exact_product_of_a_polynomial():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    v = [torch.tensor([0.5, -1.0], dtype=torch.float64)]
    # d/da <d(a w0^2 + a^2 w1)/dw, v> = 2 w0 v0 + 2 a v1
    expected = torch.tensor([1.0 - 6.0], dtype=torch.float64)
    for method in ("exact", "finite_difference"):
        (product,) = hvp(lambda: (a * w[0] ** 2 + a**2 * w[1]).sum(), [w], v, [a], method=method)
        torch.testing.assert_close(product, expected)


def test_product_with_nothing_is_nothing_and_bad_vectors_are_refused():
    w = torch.ones(3, requires_grad=True)
    a = torch.ones(1, requires_grad=True)
    loss = lambda: (a * w.sum() ** 2).sum()  # noqa: E731
    assert hvp(loss, [w], [torch.zeros(3)], [a])[0].item() == 0
    with pytest.raises(InputError, match="one tensor a parameter"):
        hvp(loss, [w], [torch.zeros(2)], [a])
    with pytest.raises(DivergedError, match="norm nan"):
        hvp(loss, [w], [torch.full((3,), float("nan"))], [a])
    with pytest.raises(InputError, match="unknown method"):
        hvp(loss, [w], [torch.zeros(3)], [a], method="magic")


@pytest.mark.parametrize("method", ["finite_difference", "exact"])
@pytest.mark.parametrize("boom", [False, True])
def test_a_product_leaves_everything_to_the_bit(boom, method):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(), torch.nn.Linear(6, 3)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(8, 4).double()).sum().backward()
    optimizer.step()
    alpha, calls = torch.ones(3, dtype=torch.float64, requires_grad=True), 0

    def loss():
        nonlocal calls
        calls += 1
        out = (model(torch.randn(8, 4).double()) * alpha).square().sum()
        if boom and calls == (2 if method == "finite_difference" else 1):
            raise BoomError
        return out

    def state():
        tensors = [*model.parameters(), *model.buffers(), alpha, torch.get_rng_state()]
        return bits(tensors + [s["momentum_buffer"] for s in optimizer.state.values()])

    before, params = state(), list(model.parameters())
    frozen = [p.requires_grad for p in params]
    try:
        (found,) = hvp(loss, params, params, [alpha], method=method, buffers=list(model.buffers()))
        assert found.abs().sum() > 0
    except BoomError:
        assert boom
    assert calls == (1 if method == "exact" else 2)
    assert same_bits(before, state()) and frozen == [p.requires_grad for p in params]


def test_no_grad_does_not_silence_a_product():
    model, _, _, train, valid, step = cnn_problem()
    weights, alphas = list(model.parameters()), model.arch_parameters()
    vector = torch.autograd.grad(valid(), weights)
    for method in ("finite_difference", "exact"):
        wanted = hvp(train, weights, vector, alphas, method=method)
        with torch.no_grad():
            assert same_bits(hvp(train, weights, vector, alphas, method=method), wanted)
    with torch.no_grad():
        step(True)
    assert all(a.grad.abs().sum() > 0 for a in alphas)
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        step(False)


def quadratic(dtype=torch.float64):
    """A loss a |w|^2, whose product with v is 2 <w, v>."""
    w = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    a = torch.tensor([3.0], dtype=dtype, requires_grad=True)
    return w, a, lambda: (a * w.pow(2)).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_that_half_precision_rounds_away_are_warned_of(dtype):
    w, a, loss = quadratic(dtype)
    v = [torch.tensor([0.5, -1.0], dtype=dtype)]
    (exact,) = hvp(loss, [w], v, [a], method="exact")
    assert exact.item() == -3.0
    with pytest.warns(UserWarning, match=f"{dtype} parameters"):
        hvp(loss, [w], v, [a])
    assert w.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_a_parameter_listed_twice_is_refused(method):
    w, a, loss = quadratic()
    v = [torch.ones(2, dtype=torch.float64)] * 2
    with pytest.raises(InputError, match="twice"):
        hvp(loss, [w, w], v, [a], method=method)


@pytest.mark.parametrize("frozen", ["w", "a"])
def test_exact_says_what_cannot_be_differentiated(frozen):
    w, a, loss = quadratic()
    v, still = [torch.ones(2, dtype=torch.float64)], torch.zeros(2, dtype=torch.float64)
    params, wrt = ([still], [a]) if frozen == "w" else ([w], [still])
    with pytest.raises(InputError, match="does not require a gradient"):
        hvp(loss, params, v, wrt, method="exact")
