"""The CNN network on the CPU kernels against the reference path: values, bits, what is kept and computed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dartsfast.backends import availability
from dartsfast.bilevel import hvp
from dartsfast.cnn.architect import Architect
from dartsfast.cnn.genotypes import PRIMITIVES
from dartsfast.cnn.model_search import Cell, Network
from dartsfast.cnn.operations import OPS, ReLUConvBN, SepConv
from dartsfast.errors import InputError
from dartsfast.fused.images import as_stored
from dartsfast.fused.programs import Prepared

_cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not _cpu.available, reason=_cpu.reason)


def network(backend, dtype=torch.float64, **options):
    torch.manual_seed(0)
    options = {"C": 4, "layers": 3, "steps": 2, "multiplier": 2, "backend": backend, **options}
    return Network(num_classes=10, criterion=nn.CrossEntropyLoss(), **options).to(dtype)


def batch(dtype, N=4, HW=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 3, HW, HW, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(10, (N,), generator=generator)


def search(model, iterations, order=1, dtype=torch.float64, **size):
    """Run search iterations; return every float that they left behind, by name."""
    sgd = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    args = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-3, arch_weight_decay=1e-3)
    architect = Architect(model, args)
    for i in range(iterations):
        x, y = batch(dtype, seed=2 * i, **size)
        architect.step(x, y, *batch(dtype, seed=2 * i + 1, **size), 0.025, sgd, unrolled=order == 2)
        sgd.zero_grad()
        model._loss(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5)
        sgd.step()
    state = dict(model.state_dict())
    state |= {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return state


def relative(a, b):
    # Some truths are zero, such as a mean after batch norm: there the difference itself counts.
    return ((a - b).double().norm() / b.double().norm().clamp_min(1e-6)).item()


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_auto_takes_the_kernels_on_a_cpu():
    assert network("auto").backend == "cpu"
    assert network("cpu").backend == "cpu"
    assert network("reference").backend == "reference"


def test_other_dtypes_take_the_reference_path_aloud():
    model = network("auto", torch.bfloat16)
    with pytest.warns(UserWarning, match="take float32 and float64, not torch.bfloat16"):
        assert model.backend == "reference"
    with pytest.raises(InputError, match="not torch.bfloat16"):
        network("cpu", torch.bfloat16)(batch(torch.bfloat16)[0])


def test_autocast_leaves_the_kernels_in_float32():
    # an ordinary module gives its output in bfloat16
    model = network("cpu", torch.float32, primitives=["sep_conv_3x3", "conv_7x1_1x7"])
    x, y = batch(torch.float32)
    wanted = torch.autograd.grad(model._loss(x, y), model.arch_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model._loss(x, y)
    for a, b in zip(torch.autograd.grad(loss, model.arch_parameters()), wanted, strict=True):
        assert relative(a, b) < 0.1  # the classifier is in bfloat16


def test_images_of_another_dtype_are_taken_as_by_stock_modules():
    model, (x, y) = network("cpu", torch.float32), batch(torch.float32)
    half = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model._loss(half, y), model._loss(half.float(), y))
    for images in (half, x.double()):
        errors = []
        for backend in ("cpu", "reference"):
            with pytest.raises(RuntimeError) as error:
                network(backend, torch.float32)(images)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


def test_nothing_is_copied_for_a_backward_that_will_not_be():
    x = torch.ones(3, 2)
    assert as_stored(x, torch.bfloat16).dtype == torch.bfloat16
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert as_stored(torch.ones(3, 2), torch.bfloat16).dtype == torch.float32


def kept_and_gradients(model, x, y):
    """Return the bytes that a forward keeps, weights left out, and the gradients of the alphas."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.arch_parameters()]}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model._loss(x, y)
    return sum(kept.values()), torch.autograd.grad(loss, model.arch_parameters())


def test_recompute_keeps_nothing_within_ordinary_operations():
    found = {}
    for memory in ("store", "recompute"):
        model = network("cpu", memory=memory, primitives=["skip_connect", "conv_7x1_1x7"])
        found[memory] = kept_and_gradients(model, *batch(torch.float64))
    assert found["recompute"][0] < 0.5 * found["store"][0]
    for a, b in zip(found["recompute"][1], found["store"][1], strict=True):
        assert torch.equal(a, b)


def test_storage_in_float32_is_storage_as_it_is():
    model = network("cpu", torch.float64, storage_dtype=torch.float32)
    plain = network("cpu", torch.float64)
    for a, b in zip(
        *(kept_and_gradients(each, *batch(torch.float64)) for each in (model, plain)), strict=True
    ):
        assert all(map(torch.equal, a, b)) if isinstance(a, tuple) else a == b


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_state_after_an_iteration_is_that_of_stock_modules(memory):
    reference = search(network("reference"), 2)
    found = search(network("cpu", memory=memory), 2)
    assert list(found) == list(reference)
    for name, value in found.items():
        assert relative(value, reference[name]) < 1e-9, name


def test_fifty_first_order_iterations_agree_to_1e_7():
    models = {backend: network(backend) for backend in ("reference", "cpu")}
    for model in models.values():
        search(model, 50)
    for a, b in zip(models["cpu"].arch_parameters(), models["reference"].arch_parameters(), strict=True):
        assert relative(a, b) < 1e-7
    assert models["cpu"].genotype() == models["reference"].genotype()


@pytest.mark.parametrize("order", [1, 2])
def test_same_bits_for_any_number_of_threads_and_all_ways_to_keep(order):
    states = []
    each = [(1, "store"), (2, "store"), (3, "store"), (3, "store"), (2, "recompute"), (2, "cell")]
    for threads, memory in each:
        torch.set_num_threads(threads)
        # large enough that the kernels are worth more than one thread
        model = network("cpu", torch.float32, C=8, memory=memory)
        states.append(search(model, 2, order, torch.float32, N=7, HW=32))
    for state in states[1:]:
        for name, value in state.items():
            assert torch.equal(value, states[0][name]), name


def test_float32_is_as_near_to_float64_as_stock_modules():
    def run(backend, dtype):
        model = network(backend, dtype, steps=4, multiplier=4)
        x, y = batch(dtype, N=8, HW=16)
        logits = model(x)
        nn.functional.cross_entropy(logits, y).backward()
        weights = torch.cat([p.grad.flatten() for p in model.parameters()])
        alphas = torch.cat([a.grad.flatten() for a in model.arch_parameters()])
        return [t.detach().double() for t in (logits, weights, alphas)]

    truth = run("reference", torch.float64)
    theirs = [relative(a, b) for a, b in zip(run("reference", torch.float32), truth, strict=True)]
    ours = [relative(a, b) for a, b in zip(run("cpu", torch.float32), truth, strict=True)]
    for name, our, their in zip(("logits", "weight gradients", "alpha gradients"), ours, theirs, strict=True):
        assert our <= 1.5 * their, f"{name}: {our:.2e} against {their:.2e}"


class Halved(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return 0.5 * x[:, :, :: self.stride, :: self.stride].tanh()


def inner(C, stride, affine):
    """Twice as many channels between the two halves of a separable convolution, as one may build it."""
    module = SepConv(C, C, 3, stride, 1, affine)
    module.op[2], module.op[3] = nn.Conv2d(C, 2 * C, 1, bias=False), nn.BatchNorm2d(2 * C, affine=affine)
    module.op[5] = nn.Conv2d(2 * C, 2 * C, 3, padding=1, groups=2 * C, bias=False)
    module.op[6] = nn.Conv2d(2 * C, C, 1, bias=False)
    return module


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize(
    "primitives",
    [
        list(PRIMITIVES),
        ["none", "conv_7x1_1x7", "skip_connect", "sep_conv_7x7"],
        ["max_pool_3x3", "halved", "halved"],
        ["avg_pool_3x3", "dil_conv_5x5", "avg_pool_3x3"],
        ["skip_connect", "none"],
        ["wide", "skip_connect"],
        ["pointwise", "dil_conv_3x3", "halved"],  # with taps and without
        ["pointwise", "pointwise"],
        ["sep_conv_3x3", "inner"],  # of two widths
    ],
    ids=lambda p: "+".join(p)[:40],
)
def test_cells_of_any_primitives(monkeypatch, primitives, reduction, training):
    monkeypatch.setitem(OPS, "halved", lambda C, stride, affine: Halved(stride))
    # a kernel that the operator does not take
    monkeypatch.setitem(OPS, "wide", lambda C, stride, affine: SepConv(C, C, 17, stride, 8, affine))
    monkeypatch.setitem(OPS, "pointwise", lambda C, stride, affine: ReLUConvBN(C, C, 1, stride, 0, affine))
    monkeypatch.setitem(OPS, "inner", inner)
    results = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(3)
        cell = Cell(2, 2, 6, 5, 4, reduction, False, backend=backend, primitives=primitives).double()
        for norm in cell.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
        cell.train(training)
        s0, s1 = (torch.randn(3, c, 6, 10, dtype=torch.float64, requires_grad=True) for c in (6, 5))
        weights = torch.rand(5, len(primitives), dtype=torch.float64, requires_grad=True)
        out = cell(s0, s1, weights)
        g = torch.randn(out.shape, dtype=out.dtype)
        gradients = torch.autograd.grad(out, [s0, s1, weights, *cell.parameters()], g)
        results.append([out, *gradients, *(b.double() for b in cell.buffers())])
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert (ours - theirs).norm() <= 1e-11 * theirs.norm() + 1e-14


def test_gradcheck_of_a_cell():
    torch.manual_seed(0)
    cell = Cell(1, 1, 3, 2, 3, False, False, backend="cpu").double()
    inputs = [torch.randn(2, c, 3, 5, dtype=torch.float64, requires_grad=True) for c in (3, 2)]
    weights = torch.rand(2, len(PRIMITIVES), dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*cell.named_parameters(), strict=True)

    def run(s0, s1, w, *values):
        return torch.func.functional_call(cell, dict(zip(names, values, strict=True)), (s0, s1, w))

    assert torch.autograd.gradcheck(run, (*inputs, weights, *parameters), fast_mode=True)


def test_every_layout_of_the_images_gives_the_same_bits():
    x, _ = batch(torch.float32)
    model = network("cpu", torch.float32).eval()
    wanted = model(x)
    assert torch.equal(model(x.to(memory_format=torch.channels_last)), wanted)
    wide = torch.randn(4, 6, 8, 16)
    wide[:, ::2, :, ::2] = x
    assert torch.equal(model(wide[:, ::2, :, ::2]), wanted)


def kept_bytes(model, x, y):
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model._loss(x, y)
    return sum(seen.values())


def test_kept_for_the_backward():
    x, y = batch(torch.float32, N=8, HW=32)
    kept = {
        (backend, memory): kept_bytes(network(backend, torch.float32, memory=memory), x, y)
        for backend, memory in [("reference", "store"), ("cpu", "store"), ("cpu", "recompute")]
    }
    assert kept["cpu", "store"] < kept["reference", "store"] / 3
    assert kept["cpu", "recompute"] < kept["cpu", "store"] / 3


def test_the_engine_asks_for_what_it_uses(monkeypatch):
    asked = []
    backward = Prepared.backward

    def spy(prepared, needed):
        found = backward(prepared, needed)
        instructions = [i for section in found[0].program.sections for i in section]
        asked.extend(bool(i.writes[2]) for i in instructions if i.op == "branch_conv_backward")
        return found

    monkeypatch.setattr(Prepared, "backward", spy)
    model = network("cpu")
    sgd = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9)
    args = SimpleNamespace(momentum=0.9, weight_decay=0.0, arch_learning_rate=1e-3, arch_weight_decay=0.0)
    architect = Architect(model, args)
    x, y = batch(torch.float64)
    architect.step(x, y, x, y, 0.025, sgd, unrolled=False)
    assert asked and not any(asked)
    asked.clear()
    architect.step(x, y, x, y, 0.025, sgd, unrolled=True)
    # virtual step and validation gradient ask for weight gradients, the two finite-difference passes do not
    assert 0 < sum(asked) < len(asked)
    assert asked[-1] is False
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("second", ["alphas", "images", "weights"])
def test_a_second_derivative_raises(second):
    """By whatever path: a product with the weights' gradient must not come out without its fused part."""
    model = network("cpu")
    x, y = batch(torch.float64)
    x.requires_grad_()
    weights, alphas = list(model.parameters()), model.arch_parameters()
    by = {"alphas": alphas, "images": [x], "weights": weights}[second]
    for first in (alphas, [x], weights, weights[-3:-2]):
        found = torch.autograd.grad(model._loss(x, y), first, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once.*backend='reference'"):
            torch.autograd.grad(sum(g.sum() for g in found), by, allow_unused=True)
    with pytest.raises(RuntimeError, match="differentiable once.*backend='reference'"):
        hvp(lambda: model._loss(x, y), weights, weights, alphas, method="exact")


def test_batch_norm_options_are_those_of_the_modules():
    states = []
    for backend in ("reference", "cpu"):
        model = network(backend)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        norms[5].momentum, norms[6].momentum, norms[7].eps = None, 0.5, 1e-2
        norms[9].eval()
        states.append(search(model, 2))
    for name, value in states[0].items():
        assert relative(states[1][name], value) < 1e-9, name


def test_a_classifier_that_is_more_than_linear_runs_as_it_is():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, _ = batch(torch.float64)
    logits, seen = {}, []
    for backend in ("reference", "cpu"):
        model = network(backend)
        plain = model(x)
        handle = model.classifier.register_forward_hook(lambda module, args, out: seen.append(out))
        assert torch.allclose(model(x), plain, rtol=1e-12)
        handle.remove()
        doubled = Doubled(*reversed(model.classifier.weight.shape), dtype=torch.float64)
        doubled.load_state_dict(model.classifier.state_dict())
        model.classifier = doubled
        assert torch.allclose(model(x), 2 * plain, rtol=1e-12)
        logits[backend] = plain
    assert len(seen) == 2
    assert relative(logits["cpu"], logits["reference"]) < 1e-12


def test_alphas_of_no_cell_stay_where_they_are():
    model = network("cpu", layers=2)  # two reductions
    before = model.alphas_normal.detach().clone()
    search(model, 1)
    assert model.alphas_normal.grad is None
    assert torch.equal(model.alphas_normal, before)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="even"):
        network("cpu")(torch.randn(2, 3, 9, 9, dtype=torch.float64))
    with pytest.raises(InputError, match="one value"):
        network("cpu")(torch.randn(1, 3, 4, 4, dtype=torch.float64))
    with pytest.raises(InputError, match="other than none"):
        network("cpu", primitives=["none"])(torch.randn(2, 3, 8, 8, dtype=torch.float64))
