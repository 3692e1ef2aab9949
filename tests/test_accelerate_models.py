"""What becomes of accelerated models afterwards: changes, copies, pickles, traces, restoring, reports."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from test_accelerate import assert_same, copied, iterations, whatever_the_size  # noqa: F401 - a fixture
from test_accelerate_traps import C, Every, Flagged, Residual, checkpointed, in_a_loop
from torch import nn

import dartsfast
from bench.miniatures import Dense, Separable, Stacked, eight, relu_conv_norm
from dartsfast.backends import availability
from dartsfast.descendants.lazy import Lazy
from dartsfast.descendants.plan import Plan
from dartsfast.descendants.recognise import recognise
from dartsfast.errors import CheckFailedError, InputError
from dartsfast.fused.programs import Prepared

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


def switched_off(m):
    m.ops[4].off = True


def sixteen(**options):
    torch.manual_seed(1)
    model = Every(in_a_loop)
    model.ops[4] = Flagged(C, 3, 1)
    model.double()
    fast = copied(model)
    dartsfast.accelerate(fast, **options)
    return model, fast


def test_a_source_changed_in_place_is_refused():
    _, model = sixteen()
    x = torch.randn(2, C, 6, 6, dtype=torch.float64)
    found = model.ops[4](x)
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        found.sum()


@pytest.mark.parametrize("what", ["weight", "addend", "result"])
def test_parts_of_a_sum_changed_in_place_are_refused(what):
    _, model = sixteen()
    x = torch.randn(2, C, 6, 6, dtype=torch.float64)
    weight, addend, result = torch.ones((), dtype=torch.float64), x.clone(), model.ops[4](x)
    found = weight * model.ops[5](x) + addend + 2.0 * result
    {"weight": weight, "addend": addend, "result": result}[what].mul_(2.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        found.sum()


def test_tied_weights_are_ordinary():
    torch.manual_seed(1)
    model = Every(in_a_loop).double()
    model.ops[12].body[2].weight = model.ops[4].body[2].weight
    fast = copied(model)
    report = dartsfast.accelerate(fast)
    assert {reason for _, reason in report.ordinary} == {"it shares weights or norms with another operation"}
    assert_same(iterations(model, images=6), iterations(fast, images=6))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.eval(),
        lambda m: m.ops[4].body.__setitem__(0, nn.ReLU6()),
        lambda m: m.ops[4].body[1].register_forward_hook(lambda m, x, out: 2 * out),
        lambda m: m.ops[4].register_forward_hook(lambda m, x, out: 2 * out),
        lambda m: m.ops[4].register_full_backward_hook(lambda m, g, out: (2 * g[0],)),
        lambda m: setattr(m.ops[4], "forward", lambda x: 3 * x),
        lambda m: setattr(m.ops[4].body[3], "momentum", None),
        switched_off,
        lambda m: m.float() and m.double(),
    ],
    ids=["eval", "layer", "hook within", "hook", "hook back", "forward", "momentum", "attribute", "moved"],
)
def test_a_change_afterwards_is_seen(change):
    model, fast = sixteen()
    assert_same(iterations(model, images=6), iterations(fast, images=6))
    for one in (model, fast):
        change(one)
    assert_same(iterations(model, images=6), iterations(fast, images=6))


def test_copies_compute_with_their_own_weights():
    model, fast = sixteen()
    iterations(fast, images=6)
    other = copied(fast)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    want = copied(model)
    want.load_state_dict(other.state_dict())
    want.arch = [a.detach().clone().requires_grad_() for a in other.arch]
    assert_same(iterations(want, images=6), iterations(other, images=6))
    again = pickle.loads(pickle.dumps(other))
    assert again.ops[4].forward.module is again.ops[4]
    assert_same(iterations(copied(other), images=6), iterations(again, images=6))


def test_states_go_in_and_out():
    model, fast = sixteen()
    assert list(model.state_dict()) == list(fast.state_dict())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in fast.named_modules()]
    kept = io.BytesIO()
    torch.save(fast.state_dict(), kept)
    kept.seek(0)
    model.load_state_dict(torch.load(kept))
    assert_same(iterations(model, images=6), iterations(fast, images=6))


def test_restored_models_are_what_they_were():
    model, fast = sixteen()
    before = {name: list(m.__dict__) for name, m in model.named_modules()}
    dartsfast.restore(fast)
    assert {name: list(m.__dict__) for name, m in fast.named_modules()} == before
    for a, b in zip(iterations(model, images=6), iterations(fast, images=6), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_what_kernels_do_not_serve_is_the_users_own():
    _, fast = sixteen()
    x = torch.randn(2, C, 6, 6, dtype=torch.float64)
    assert isinstance(fast.ops[4](x), Lazy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert type(fast.ops[4](x.float()) if fast.float() else None) is torch.Tensor
    fast.double()
    assert type(fast.ops[3](x.to(torch.bfloat16))) is torch.Tensor
    assert type(fast.ops[1](x[:1, :, :1, :1].expand(1, C, 1, 1)) if fast.eval() else None) is torch.Tensor
    out = torch.func.vmap(fast.ops[4])(x[:, None])
    torch.testing.assert_close(out[:, 0], Separable.forward(fast.ops[4], x))


def test_traces_and_exports_hold_stock_operations():
    model, fast = sixteen()
    for one in (model, fast):
        one.eval().arch[0].requires_grad_(False)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
    traced = torch.jit.trace(fast, x, check_trace=False)
    torch.testing.assert_close(traced(x), want)
    exported = torch.export.export(fast, (x,), strict=False)
    assert not any("dartsfast" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), want)


def test_a_function_of_autograd_does_not_pass_in_silence():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    _, fast = sixteen()
    x = torch.randn(2, C, 6, 6, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"torch\.autograd\.Function"):
        Twice.apply(fast.ops[4](x)).sum().backward()


def test_reentrant_checkpoints_of_edges():
    torch.manual_seed(1)
    model = Every(checkpointed(True)).double()
    fast = copied(model)
    dartsfast.accelerate(fast)
    for one in (model, fast):
        torch.manual_seed(2)
        one(torch.randn(2, 3, 6, 6, dtype=torch.float64)).sum().backward()
    for a, b in zip(model.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


class Through(torch.autograd.Function):
    """A checkpoint as people write it: forward without gradients, and again in the backward."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run = run
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.run(x), g)
        return None, x.grad


def test_operations_on_operations_within_a_function_have_gradients():
    torch.manual_seed(0)
    model = nn.Module()
    model.first, model.second = nn.ModuleList(eight(C, 1)), nn.ModuleList(eight(C, 1))
    fast = copy.deepcopy(model)
    assert dartsfast.accelerate(fast).fused
    found = []
    for one in (model, fast):
        x = torch.linspace(-1, 1, 2 * C * 36, dtype=torch.float64).view(2, C, 6, 6).requires_grad_()
        one.double()
        run = lambda x, m=one: sum(op(sum(op(x) for op in m.first)) for op in m.second)  # noqa: E731
        out = Through.apply(run, x)
        out.square().mean().backward()
        found.append([out, x.grad, *(p.grad for p in one.parameters()), *one.buffers()])
    for wanted, got in zip(*found, strict=True):
        assert got is not None
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_many_masks_do_not_make_many_programs():
    def use(m, x, w):
        return sum(w[k] * op(x) for k, op in enumerate(m.ops) if k == 4 or torch.rand(()) < 0.5)

    torch.manual_seed(1)
    model = Every(use).double()
    fast = copied(model)
    dartsfast.accelerate(fast)
    assert_same(iterations(model, 40, images=6), iterations(fast, 40, images=6), 1e-9)
    assert len(fast.ops[4].forward.plans._plans) <= 32


def test_classes_build_accelerated_networks():
    @dartsfast.accelerate
    class Network(Stacked):
        def new(self):
            return Network()

    first = Network()
    other = first.new()
    assert isinstance(other.cells[0].edges[0].ops[4].__dict__["forward"], object)
    assert "forward" in other.cells[0].edges[0].ops[4].__dict__
    dartsfast.restore(Network)
    assert "forward" not in Network().cells[0].edges[0].ops[4].__dict__


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_a_cell_is_one_program(memory, monkeypatch):
    counted = []
    monkeypatch.setattr(
        Prepared,
        "__call__",
        lambda self, *args, run=Prepared.__call__: counted.append(self) or run(self, *args),
    )
    torch.manual_seed(1)
    model = Stacked()
    dartsfast.accelerate(model, memory=memory, verify=False)
    model(torch.randn(2, 3, 16, 16))
    assert len(counted) == len(model.cells)
    assert {prepared.forward.setting.memory for prepared in counted} == {memory}


def test_a_pool_by_itself_is_computed_with_the_others(monkeypatch):
    model = Dense()
    dartsfast.accelerate(model, verify=False)
    pooled = []
    monkeypatch.setattr(F, "avg_pool2d", lambda *given: pooled.append(given))
    model(torch.randn(2, 3, 8, 8))
    assert not pooled


def test_few_operations_are_not_worth_it():
    report = dartsfast.accelerate(Every(in_a_loop, eight(C, 1)[:6]))
    assert not report.fused and "nothing is fused" in str(report)
    with pytest.raises(CheckFailedError, match="nothing is fused"):
        dartsfast.accelerate(nn.Linear(2, 2), strict=True)


def test_small_images_are_left_to_operations_of_few_layers(monkeypatch):
    monkeypatch.setattr("dartsfast.descendants.models._FEWEST_VALUES", 16384)
    torch.manual_seed(1)
    model = Dense(C=8).doubled()
    fast = copied(model)
    report = dartsfast.accelerate(fast)
    assert "images of fewer than 16384 values" in str(report) and report.fused
    assert_same(iterations(model, images=32), iterations(fast, images=32))
    point = fast.stages[0][0].edges["1<-0"][2]
    assert type(point(torch.randn(2, 8, 31, 32, dtype=torch.float64))) is torch.Tensor
    assert type(point(torch.randn(2, 8, 32, 32, dtype=torch.float64))) is Lazy
    assert not dartsfast.accelerate(Stacked()).note


@pytest.mark.parametrize(("chosen", "pixels", "programs"), [(1, 20, 0), (1, 21, 1), (8, 3, 1)])
def test_small_sums_of_few_layers_are_left_to_operations(chosen, pixels, programs, monkeypatch):
    monkeypatch.setattr("dartsfast.descendants.models._LEAST_WORK", 8 * 2 * C * 21 * 21)
    counted = []
    run = Prepared.__call__
    monkeypatch.setattr(Prepared, "__call__", lambda self, *args: counted.append(1) or run(self, *args))
    model = Every(in_a_loop).double()
    fast = copied(model)
    dartsfast.accelerate(fast, verify=False)
    x = torch.randn(2, C, pixels, pixels, dtype=torch.float64)
    for _ in range(10):
        found = [sum(0.5 * op(x) for op in m.ops[4 : 4 + chosen]).sum() for m in (model, fast)]
        torch.testing.assert_close(*found)
    assert len(counted) == 10 * programs
    assert (type(fast.ops[4](x)) is Lazy) == bool(programs)
    assert type(fast.ops[4](torch.randn(2, C, 32, 32, dtype=torch.float64))) is Lazy


def test_combinations_have_a_plan_when_they_are_met_again(monkeypatch):
    made, make = [], Plan.__init__
    monkeypatch.setattr(Plan, "__init__", lambda self, groups: made.append(len(groups)) or make(self, groups))
    _, model = sixteen()
    x, y = torch.randn(2, 2, C, 6, 6, dtype=torch.float64).unbind()

    def plans(*others):
        made.clear()
        sum([model.ops[k](y) for k in others], model.ops[4](x)).sum()
        return made[:]

    assert plans(5, 6) == [2]
    assert plans(5, 7) == [1, 1]  # edge by edge
    assert plans(5, 12) == [1, 1]  # the edge that is another, too, by its operations
    assert plans(5, 7) == [2]
    assert plans(5, 6) == plans(5, 7) == []


@pytest.mark.parametrize("call", [dartsfast.accelerate, dartsfast.restore])
def test_what_is_no_module_is_refused(call):
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Module"):
        call("a model")


def test_the_report_says_what_and_why():
    model = Every(
        in_a_loop, [*eight(C, 1), *eight(C, 1), relu_conv_norm(C, C, 3), nn.Conv2d(C, C, 3, padding=1)]
    )
    report = dartsfast.accelerate(model)
    text = str(report)
    assert "twice relu, depthwise 3x3, pointwise, norm" in text
    assert "relu, convolution (torch's own), norm" in text
    assert "Conv2d: a chain of Conv2d" in text
    assert report.share == 17 / 18
    convs = 2 * (2 * (9 + 4) * 4 + 2 * (25 + 4) * 4 + (9 + 4) * 4 + (25 + 4) * 4)
    assert report.share_of_arithmetic == convs / (convs + 2 * 9 * 16)


def wrongly_recognised(monkeypatch):
    """Let an operation that adds its input pass for one that does not."""

    def wrong(module):
        return recognise(module.body if type(module) is Residual else module)

    for reader in ("models", "plan"):
        monkeypatch.setattr(f"dartsfast.descendants.{reader}.recognise", wrong)
    return Every(in_a_loop, [*eight(C, 1), *eight(C, 1), Residual(C, 3, 1)])


def test_what_differs_is_ordinary_aloud(monkeypatch):
    model = wrongly_recognised(monkeypatch)
    before, state = [b.clone() for b in model.buffers()], torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"ops\.16 \(Residual\) is not fused: its result .* differ by"):
        report = dartsfast.accelerate(model)
    assert "forward" not in model.ops[16].__dict__ and report.fused.total() == 16
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_strict_raises_for_what_differs(monkeypatch):
    with pytest.raises(CheckFailedError, match="is not fused"):
        dartsfast.accelerate(wrongly_recognised(monkeypatch), strict=True)
