"""The figures of the original code in float64: names, losses, gradients, trajectories, genotypes."""

import instruction_sets
import pytest
import torch
from golden_inputs import cases, cnn, cnn_batches, load, rnn, rnn_batches, rnn_loss
from op_backends import running_on

from dartsfast.backends import availability
from dartsfast.cnn.architect import Architect as CNNArchitect
from dartsfast.rnn.architect import Architect as RNNArchitect

_cpu = availability("cpu")


@pytest.fixture(params=["reference", *(f"cpu-{name}" for name in instruction_sets.ALL)])
def backend(request):
    """Compute on the reference path, or on the C++ kernels of every instruction set."""
    name, _, instructions = request.param.partition("-")
    if not instructions:
        yield name
        return
    if not _cpu.available:
        pytest.skip(_cpu.reason)
    for _ in running_on(instructions, request):
        yield name


def close(actual, expected, tolerance):
    actual = torch.as_tensor(actual, dtype=torch.float64).detach().flatten()
    expected = torch.tensor(expected, dtype=torch.float64).flatten()
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    error = (actual - expected).norm() / expected.norm().clamp_min(1e-300)
    assert error <= tolerance, f"relative error {error:.3g} > {tolerance}"


def lists(genotype):
    fields = genotype._asdict()
    assert len({tuple(v) for k, v in fields.items() if k.endswith("concat")}) == 1
    named = {k if k in ("normal", "reduce", "recurrent") else "concat": v for k, v in fields.items()}
    return {k: [list(v) if isinstance(v, tuple) else v for v in g] for k, g in named.items()}


def norm(tensors):
    return torch.cat([t.detach().flatten() for t in tensors]).norm()


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("case", cases("cnn"))
def test_cnn(case, backend, memory):
    golden = load(case)
    config = golden["config"]
    model, optimizer, args = cnn(config, backend=backend, memory=memory)
    assert model.backend == backend
    assert [name for name, _ in model.named_parameters()] == golden["names"]
    architect = CNNArchitect(model, args)
    tolerance = 1e-9 if config["order"] == 1 else 1e-7
    for s, expected in enumerate(golden["trace"]):
        x, y, xv, yv = cnn_batches(config, s)
        architect.step(x, y, xv, yv, 0.025, optimizer, unrolled=config["order"] == 2)
        for alpha, dalpha in zip(model.arch_parameters(), expected["dalpha"], strict=True):
            close(alpha.grad, dalpha, tolerance)
        optimizer.zero_grad()
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        if expected["weight_grad_norms"] is not None:  # iteration 0
            close(
                torch.stack([p.grad.norm() for p in model.parameters()]),
                expected["weight_grad_norms"],
                tolerance,
            )
        optimizer.step()
        close(logits, expected["logits"], tolerance)
        close(loss, expected["loss"], tolerance)
        close(grad_norm, expected["grad_norm"], tolerance)
        for alpha, after in zip(model.arch_parameters(), expected["alphas"], strict=True):
            close(alpha, after, tolerance)
        close(norm(model.parameters()), expected["weight_norm"], tolerance)
    buffers = dict(model.named_buffers())
    sums = golden["buffer_sums"]
    close(torch.stack([buffers[name].sum() for name in sums]), list(sums.values()), tolerance)
    model.eval()
    with torch.no_grad():
        close(model(x), golden["eval_logits"], tolerance)
    assert lists(model.genotype()) == golden["genotype"]


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("case", cases("rnn"))
def test_rnn(case, backend, memory):
    golden = load(case)
    config = golden["config"]
    model, optimizer, args = rnn(config, backend=backend, memory=memory)
    assert model.backend == backend
    assert [name for name, _ in model.named_parameters()] == golden["names"]
    architect = RNNArchitect(model, args)
    tolerance = 1e-9 if config["order"] == 1 else 1e-6
    hidden = hidden_valid = model.init_hidden(config["B"])
    for s, expected in enumerate(golden["trace"]):
        x, y, xv, yv = rnn_batches(config, s)
        hidden_valid, _ = architect.step(hidden, x, y, hidden_valid, xv, yv, optimizer, config["order"] == 2)
        close(model.weights.grad, expected["dalpha"], tolerance)
        optimizer.zero_grad()
        raw_loss, loss, hidden = rnn_loss(model, hidden, x, y)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config["clip"])
        optimizer.step()
        hidden = [h.detach() for h in hidden]
        close(raw_loss, expected["raw_loss"], tolerance)
        close(loss, expected["loss"], tolerance)
        close(grad_norm, expected["grad_norm"], tolerance)
        close(model.weights, expected["alphas"], tolerance)
        close(hidden[0].flatten()[:64], expected["hidden"], tolerance)
        close(hidden_valid[0].flatten()[:64], expected["hidden_valid"], tolerance)
        close(norm(model.parameters()), expected["weight_norm"], tolerance)
    model.eval()
    with torch.no_grad():
        eval_loss, _ = model._loss(model.init_hidden(config["B"]), x, y)
    close(eval_loss, golden["eval_loss"], tolerance)
    assert lists(model.genotype()) == golden["genotype"]
