"""Cross entropy and its gradient in place: the oracle's bits, stock numbers, and good manners."""

import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_close, same_bits
from instruction_sets import EMULATED_CUDA
from op_backends import instruction_set as instruction_set  # a fixture
from op_backends import needs_kernels
from op_calls import call
from op_cases import CLASSES, Classes
from test_fused_rnn import DRY, VOCABULARY, network, relative, text
from test_native import without_extension

from dartsfast.errors import InputError
from dartsfast.fused.loss import linear_cross_entropy
from dartsfast.ops import cross_entropy_
from dartsfast.oracle import cross_entropy as oracle
from dartsfast.rnn.model_search import RNNModelSearch

WITHOUT = """
import torch
from comparisons import assert_close
from op_calls import call
from op_cases import CLASSES
from test_cross_entropy import stock
from dartsfast.backends import native
assert native.load() is not None
for case in CLASSES:
    for name, args in case.calls(torch.float64):
        assert_close(call(name, args), stock(*args))
"""


def stock(logits, bias, labels, scale):
    """Return the losses and ``scale`` times the gradient of their sum."""
    logits = logits.clone().requires_grad_()
    losses = F.cross_entropy(logits if bias is None else logits + bias, labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach(), scale * gradient


@needs_kernels
@pytest.mark.parametrize("case", CLASSES, ids=str)
def test_float32_has_the_bits_of_the_oracle(case, instruction_set):
    for name, args in case.calls():
        assert same_bits(call(name, args), oracle.cross_entropy_(*args))


@needs_kernels
@pytest.mark.parametrize("case", CLASSES, ids=str)
def test_float64_matches_stock_pytorch(case, instruction_set):
    for name, args in case.calls(torch.float64):
        assert_close(call(name, args), stock(*args))


@needs_kernels
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_its_row_alone(value, instruction_set):
    for place in (0, 33, 39):
        logits, labels = torch.zeros(3, 40), torch.tensor([1, 2, 3])
        logits[1, place] = value
        losses = cross_entropy_(logits, None, labels, 1.0)
        assert losses.isnan().tolist() == [False, True, False]
        assert logits[1].isnan().any() and logits[[0, 2]].isfinite().all()


@needs_kernels
def test_a_class_that_cannot_be():
    logits = torch.tensor([[0.0, -torch.inf, 0.0]])
    losses = cross_entropy_(logits, None, torch.tensor([0]), 1.0)
    torch.testing.assert_close(losses, torch.tensor([2.0]).log())
    assert logits.tolist() == [[-0.5, 0.0, 0.5]]


@needs_kernels
@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, False)])
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("ignored", [None, -100])
def test_the_decoder_is_that_of_stock_modules(ignored, chunk, needed):
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_(need)
        for shape, need in zip([(9, 5), (11, 5), (11,)], needed, strict=True)
    )
    labels = torch.randint(11, (9,), generator=generator)
    if ignored is not None:
        labels[[1, 4, 5, 6, 7]] = ignored  # and with them a whole chunk of four
    loss = linear_cross_entropy(rows, weight, bias, labels, chunk, ignored)
    truth = F.cross_entropy(F.linear(rows, weight, bias), labels)
    inputs = [t for t in (rows, weight, bias) if t.requires_grad]
    assert_close(loss.detach(), truth.detach())
    assert_close(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * truth, inputs))


@needs_kernels
def test_the_decoder_takes_any_layout():
    generator = torch.Generator().manual_seed(0)
    rows, weight = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in [(5, 9), (5, 11)]
    )
    rows, weight, labels = rows.T.requires_grad_(), weight.T.requires_grad_(), torch.arange(9)
    loss, truth = (
        linear_cross_entropy(rows, weight, None, labels, 4),
        F.cross_entropy(rows @ weight.T, labels),
    )
    inputs = rows, weight
    assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(truth, inputs))


@needs_kernels
def test_a_second_derivative_of_the_decoder_raises():
    rows, weight, bias = (torch.randn(shape).requires_grad_() for shape in [(9, 5), (11, 5), (11,)])
    for first in (rows, weight, bias):
        loss = linear_cross_entropy(rows, weight, bias, torch.arange(9), 4)
        (gradient,) = torch.autograd.grad(loss, first, create_graph=True)
        for second in (rows, weight, bias):
            with pytest.raises(NotImplementedError, match="differentiable once"):
                torch.autograd.grad(gradient.sum(), second, retain_graph=True)


@needs_kernels
def test_many_rows_have_the_same_bits_for_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    rows, weight = torch.randn(70_000, 2), torch.randn(3, 2)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(linear_cross_entropy(rows, weight, None, torch.arange(70_000) % 3, 256))
    torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@needs_kernels
def test_what_is_left_out_may_be_anything_and_all():
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(5, 3, generator=generator), torch.randn(4, 3, generator=generator)
    labels = torch.tensor([0, -100, 3, 2, -100])
    wanted = linear_cross_entropy(rows[labels >= 0], weight, None, labels[labels >= 0], 2)
    rows[1], rows[4] = torch.nan, torch.inf
    rows.requires_grad_()
    loss = linear_cross_entropy(rows, weight, None, labels, 2, -100)
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    assert rows.grad[[1, 4]].count_nonzero() == 0 and rows.grad.isfinite().all()
    assert linear_cross_entropy(rows, weight, None, torch.full((5,), -100), 2, -100).isnan()


def test_no_rows_have_no_mean():
    with pytest.raises(InputError, match="the mean over no rows"):
        linear_cross_entropy(torch.ones(0, 2), torch.ones(3, 2), None, torch.arange(0), 4)


@needs_kernels
@pytest.mark.parametrize(("name", "args"), Classes(3, 4).calls())
def test_opcheck(name, args):
    torch.library.opcheck(torch.ops.dartsfast.cross_entropy_.default, args)


def test_without_the_extension_stock_functions_do_the_same(pytestconfig):
    without_extension("-c", WITHOUT, PYTHONPATH=f"{pytestconfig.rootpath}:{pytestconfig.rootpath}/tests")


def test_tensors_that_autograd_follows_are_refused():
    name, args = Classes(3, 4).calls()[1]
    for place in (0, 1):
        followed = [*args[:place], args[place].clone().requires_grad_(), *args[place + 1 :]]
        with pytest.raises(RuntimeError, match="dartsfast::cross_entropy_ has no derivative"):
            call(name, followed)


@needs_kernels
def test_bad_arguments_have_clear_messages():
    logits, bias, labels = torch.ones(3, 4), torch.ones(4), torch.tensor([0, 1, 3])
    refused = [
        ((logits.T, bias, labels), r"logits must be \[R, V\], contiguous"),
        ((logits[:0], bias, labels[:0]), "not empty, got"),
        ((logits.half(), None, labels), "logits must be float32 or float64"),
        ((logits, bias[:3], labels), r"bias must be \[4\], got \[3\]"),
        ((logits, bias, labels[:2]), r"labels must be \[3\], got \[2\]"),
        ((logits, bias, labels.int()), "labels must be int64"),
    ]
    for args, message in refused:
        with pytest.raises((RuntimeError, InputError), match=message):
            cross_entropy_(*args, 1.0)


@needs_kernels
@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_label_that_is_no_class(wrong):
    logits, labels = torch.arange(12, dtype=torch.float64).view(3, 4).cos(), torch.tensor([0, wrong, 3])
    if torch.ops.dartsfast.cpu_instruction_set() != EMULATED_CUDA:
        with pytest.raises(RuntimeError, match=f"labels must be from 0 to 3, got {wrong}"):
            cross_entropy_(logits, None, labels, 1.0)
        return
    # A device does not stop for it: that row's loss is NaN, the others' are right.
    filled = logits.clone()
    losses = cross_entropy_(filled, None, labels, 0.5)
    assert losses.isnan().tolist() == [False, True, False]
    right, gradient = oracle.cross_entropy_(logits, None, labels.clamp(0, 3), 0.5)
    gradient[1, labels[1].clamp(0, 3)] += 0.5
    assert_close(losses[::2], right[::2])
    assert_close(filled, gradient)


@needs_kernels
@pytest.mark.parametrize("dropout", [0.5, 0.0])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton", "triton before torch 2.13"])
def test_padding_is_left_out_of_the_loss(backend, dropout, monkeypatch):
    """On a GPU the loss is stock PyTorch's where it has one, which runs on a CPU too."""
    backend, *before = backend.split(maxsplit=1)
    if before:
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    x, y = text()
    y[1:3, 2] = y[4, :] = -100
    x = torch.randn(5, 6, 12, dtype=torch.float64, requires_grad=True)
    model = network("cpu", dropouts={**DRY, "dropout": dropout})
    monkeypatch.setattr(RNNModelSearch, "backend", backend)
    leaves = [x, model.decoder.weight, model.decoder.bias]
    torch.manual_seed(7)
    loss = model._decoded_loss(x, y)
    torch.manual_seed(7)
    rows = model.decoder(model.lockdrop(x, dropout)).log_softmax(-1)
    kept = [(t, b) for t in range(5) for b in range(6) if y[t, b] >= 0]
    wanted = -sum(rows[t, b, y[t, b]] for t, b in kept) / len(kept)
    assert len(kept) == 22 and relative(loss, wanted) < 1e-12
    for got, expected in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(wanted, leaves), strict=True
    ):
        assert relative(got, expected) < 1e-10


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernels)])
def test_padding_is_no_target_outside_the_vocabulary(backend):
    model = network(backend, dropouts=DRY)
    x, y = text()
    y[0, 0] = -100
    loss, _ = model._loss(model.init_hidden(6), x, y.flatten())
    log_prob, _ = model(x, model.init_hidden(6))
    torch.testing.assert_close(loss, F.nll_loss(log_prob.flatten(0, 1), y.flatten()))
    for wrong in (-1, VOCABULARY):
        y[0, 1] = wrong
        with pytest.raises(InputError, match=f"target {wrong} .* vocabulary"):
            model._loss(model.init_hidden(6), x, y)
