"""Several threads at once: one model, or two that share their weights, compute what one thread computes."""

import copy
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_accelerate import MINIATURES, whatever_the_size  # noqa: F401 - a fixture
from test_accelerate_traps import C, Every, in_a_loop
from torch import nn

import dartsfast
from bench.miniatures import Dense, Partial, Separable, Stacked, relu_conv_norm
from dartsfast import fused
from dartsfast.backends import availability, pretending, resolve_backend
from dartsfast.caches import Cache
from dartsfast.cnn.model_search import Network
from dartsfast.descendants import served
from dartsfast.descendants.lazy import Lazy
from dartsfast.descendants.recognise import Recognised, recognise
from dartsfast.errors import InputError
from dartsfast.fused import check, programs
from dartsfast.fused.planning import Part, Plan
from dartsfast.methods.pc_darts import PCDARTS
from dartsfast.modules.recompute import running_statistics_untouched
from dartsfast.rnn.model_search import RNNModelSearch

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)
SECONDS = 60  # nothing here takes as long


@pytest.fixture(autouse=True)
def threads_that_take_turns():
    """Have Python go from thread to thread after every few instructions; kernels have one thread each."""
    before = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-6)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(before[0])
    torch.set_num_threads(before[1])


def at_once(*calls):
    """Return what calls return, each in a thread of its own, which begin together."""
    begin = threading.Barrier(len(calls))

    def run(call):
        begin.wait(SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [one.result(SECONDS) for one in [pool.submit(run, call) for call in calls]]


def of_images(model, k):
    generator = torch.Generator().manual_seed(k)
    return F.cross_entropy(model(torch.randn(2, 3, 8, 8, generator=generator)), torch.tensor([1, 2]))


def of_text(model, k):
    generator = torch.Generator().manual_seed(k)
    text = torch.randint(20, (5, 4), generator=generator)
    return model._loss(model.init_hidden(4), text[:-1], text[1:])[0]


def accelerated(make, **options):
    model = make()
    dartsfast.accelerate(model, strict=True, **options)
    return model


def network(kind=Network, **options):
    return kind(4, 10, 3, F.cross_entropy, 2, 2, backend="cpu", **options)


def text_model(**options):
    return RNNModelSearch(20, 8, 8, 8, 0, 0, 0, 0, 0, backend="cpu", **options)


STRUCTURES = (
    "sums of all",
    "partial channels, shuffled, betas",
    "masks",
    "one operation an edge",
    "dense cells",
)
CASES = {
    **{name: (lambda make=MINIATURES[name]: accelerated(make), of_images) for name in STRUCTURES},
    "sums of all, recomputed": (lambda: accelerated(Stacked, memory="recompute"), of_images),
    "a network": (network, of_images),
    "a network, cell by cell": (lambda: network(memory="cell"), of_images),
    "a network in half precision": (lambda: network(storage_dtype=torch.bfloat16), of_images),
    "PC-DARTS": (lambda: network(PCDARTS, share=2), of_images),
    "a recurrent network": (text_model, of_text),
    "a recurrent network, recomputed": (lambda: text_model(memory="recompute"), of_text),
}


def alphas(model):
    return list(model.arch if hasattr(model, "arch") else model.arch_parameters())


def again(model, tensors=()):
    """Return a copy of a model that has its ``tensors``, and all other tensors for itself."""
    found = copy.deepcopy(model, {id(t): t for t in tensors})
    if hasattr(model, "arch"):
        found.arch = [a if tensors else a.detach().clone().requires_grad_() for a in model.arch]
    return found


def gradients(model, loss, k, passes=2):
    """Return losses and gradients of passes; what is asked for, and with it the backward, goes by ``k``."""
    weights, own = list(model.parameters()), alphas(model)
    asked = [[*weights, *own], own, weights][k % 3]
    found = []
    for turn in range(passes):
        value = loss(model, 10 * k + turn)
        found += [value.detach(), *torch.autograd.grad(value, asked, allow_unused=True)]
    return found


def assert_equal(ours, theirs):
    assert [a is None for a in ours] == [b is None for b in theirs]
    assert all(a is None or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_threads_compute_what_one_computes(case):
    """Of models that nobody has run, so that threads make plans and programs at once, on one or shared."""
    make, loss = CASES[case]
    torch.manual_seed(1)
    model = make()
    wanted = [gradients(again(model), loss, k) for k in range(4)]
    one = again(model)
    other = again(one, [*one.parameters(), *alphas(one)])
    models = one, one, one, other
    found = at_once(*(lambda m=m, k=k: gradients(m, loss, k) for k, m in enumerate(models)))
    for ours, theirs in zip(found, wanted, strict=True):
        assert_equal(ours, theirs)


def inferred(model, k):
    with torch.inference_mode():
        return [
            model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k + i))) for i in range(5)
        ]


@pytest.mark.parametrize("make", [Stacked, Dense, lambda: Stacked(Partial, C=8, betas=True)])
def test_a_server_of_several_threads(make):
    model = accelerated(make).eval()
    wanted = [inferred(again(model), 10 * k) for k in range(4)]
    found = at_once(*(lambda k=k: inferred(model, 10 * k) for k in range(4)))
    for ours, theirs in zip(found, wanted, strict=True):
        assert_equal(ours, theirs)


def sixteen():
    torch.manual_seed(1)
    model = Every(in_a_loop).double()
    fast = copy.deepcopy(model)
    dartsfast.accelerate(fast, strict=True)
    return model, fast


def branches(model, x, pool):
    """Let threads make use of one result, and add up what they give."""
    h = model.ops[4](x)
    parts = [pool.submit(lambda k=k: 0.5 * model.ops[k](h) + h.tanh()) for k in (5, 6, 7, 12)]
    return sum(part.result(SECONDS) for part in parts) + h


def test_what_waits_is_computed_once_whoever_asks():
    model, fast = sixteen()
    x = torch.randn(2, C, 6, 6, dtype=torch.float64)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            ours, theirs = branches(fast, x, pool), branches(model, x, pool)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(fast.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_result_waits_in_its_own_thread_alone():
    _, model = sixteen()
    x = torch.randn(2, C, 6, 6, dtype=torch.float64)
    found = model.ops[4](x)
    (elsewhere,) = at_once(lambda: 2.0 * found)
    assert type(found) is Lazy and type(elsewhere) is torch.Tensor
    first = model.ops[5](x)
    at_once(lambda: model.ops[5](2 * x).sum())  # which the other call of this module does not wait for
    assert first.pending.value is None


class Slow(Separable):
    """An operation that another thread may go on within its forward."""

    def forward(self, x):
        begun.set()
        assert ended.wait(SECONDS)
        return self.body(x)


begun, ended = threading.Event(), threading.Event()


def test_other_threads_run_while_an_operation_is_traced():
    other, x = relu_conv_norm(C, C, 3), torch.randn(2, C, 6, 6)
    wanted = other(x)

    def run():
        assert begun.wait(SECONDS)
        found = other(x)
        ended.set()
        return found

    found, ours = at_once(lambda: recognise(Slow(C, 3, 1)), run)
    assert isinstance(found, Recognised) and torch.equal(ours, wanted)


def test_a_second_forward_leaves_the_statistics_of_other_threads_alone():
    model = nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C, momentum=None))
    twin, x = copy.deepcopy(model), torch.randn(2, C, 6, 6)
    buffers = list(map(id, model.buffers()))
    with running_statistics_untouched(model):
        again_here = model(x)
        at_once(lambda: model(2 * x))
    assert torch.equal(again_here, twin(x))
    twin.load_state_dict(nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C, momentum=None)).state_dict())
    twin(2 * x)
    assert buffers == list(map(id, model.buffers()))
    assert_equal(list(model.buffers()), list(twin.buffers()))


def test_what_a_thread_plans_runs_in_others():
    model = network()
    wanted = gradients(again(model), of_images, 0)
    with pretending("cuda"), Plan("cpu"):
        assert Part.current() is not None and availability("cuda").available
        found, part, there = at_once(
            lambda: gradients(model, of_images, 0), Part.current, lambda: availability("cuda").available
        )
    assert part is None and not there and resolve_backend("auto", "cpu") == "cpu"
    assert_equal(found, wanted)


def test_a_cache_has_one_value_a_key():
    cache, made = Cache(8), []

    def make():
        made.append(threading.get_ident())
        time.sleep(1e-3)
        return object()

    found = at_once(*[lambda: [cache.get(k, make) for k in range(8)]] * 4)
    assert len(made) == 8 and all(one == found[0] for one in found)
    cache.get("another", make)
    assert len(cache) == 1


def test_backwards_of_a_program_are_built_one_at_a_time(monkeypatch):
    """They write into the edges of their forward."""
    building, most = [], []

    class Slow(programs.Backward):
        def __init__(self, forward, needed):
            building.append(forward)
            most.append(building.count(forward))
            time.sleep(0.02)
            super().__init__(forward, needed)
            building.remove(forward)

    monkeypatch.setattr(programs, "Backward", Slow)
    model = network()
    of_images(model, 0)
    at_once(*(lambda k=k: gradients(model, of_images, k) for k in range(3)))
    assert max(most) == 1 and len(most) > 3


def test_threads_that_share_an_image_have_graphs_of_their_own():
    model, fast = sixteen()
    fast.ops.append(relu_conv_norm(C, C, 3).double())
    model.ops.append(copy.deepcopy(fast.ops[-1]))
    dartsfast.accelerate(fast)
    x = torch.randn(2, C, 6, 6, dtype=torch.float64, requires_grad=True) * 1
    there, done = threading.Barrier(2), threading.Barrier(2)

    def run():
        out = fast.ops[16](x) * 2.0 + fast.ops[4](x)
        value = out.sum()
        there.wait(SECONDS)  # both have relu of the image
        (found,) = torch.autograd.grad(value, x)
        done.wait(SECONDS)
        return found

    wanted = torch.autograd.grad((model.ops[16](x) * 2.0 + model.ops[4](x)).sum(), x)[0]
    for found in at_once(run, run):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_addresses_are_those_of_the_tensors_of_this_pass():
    """As another thread may set its own between."""
    pytest.importorskip("triton")
    from dartsfast.fused.grouped import Grouped

    class Late(Grouped):
        _known = property(lambda self: None, lambda self, _: None)

        def __init__(self):
            self.setting, self._addressed = SimpleNamespace(device=torch.device("cpu")), {0: 0, 1: 1}

    given = torch.ones(3), torch.ones(2)
    assert Late()._addresses(given).tolist() == [t.data_ptr() for t in given]


def test_nobody_runs_on_kernels_that_are_being_checked(monkeypatch):
    began, end, device = threading.Event(), threading.Event(), torch.device("meta", 3)

    def checked(device, run):
        check.require(device, run)  # what is checked asks for itself
        began.set()
        assert end.wait(SECONDS)
        return 0.0

    monkeypatch.setattr(check, "_difference", checked)
    monkeypatch.delenv("DARTSFAST_SELFCHECK", raising=False)
    through = []

    def second():
        assert began.wait(SECONDS)
        waiting = threading.Thread(target=lambda: through.append(check.require(device, None)))
        waiting.start()
        waiting.join(0.1)
        early = list(through)
        end.set()
        waiting.join(SECONDS)
        return early

    _, early = at_once(lambda: check.require(device, None), second)
    assert not early and through == [None]
    check._checked.discard(device)


def replicas(model, monkeypatch, count=2):
    """Return what ``nn.DataParallel`` runs on devices, here all of them the CPU."""
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_get_device_index", lambda device, _: device)
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[t.clone() for t in tensors] for _ in devices],
    )
    return module.replicate(model, list(range(count)))


@pytest.mark.parametrize("make", [lambda: accelerated(Stacked), lambda: accelerated(Dense), network])
@pytest.mark.filterwarnings("ignore:what torch.nn.DataParallel")
def test_replicas_compute_with_their_own_weights(make, monkeypatch):
    torch.manual_seed(1)
    model = make()
    plain = again(model)
    dartsfast.restore(plain)
    of_images(model, 0)  # which has programs of the original's weights
    weights = [*model.parameters(), *alphas(model)]
    with torch.no_grad():
        for t, s in zip([*plain.parameters(), *alphas(plain)], weights, strict=True):
            t.copy_(s.mul_(1.5))
    both = replicas(model, monkeypatch)
    losses = at_once(*(lambda m=m, k=k: of_images(m, k) for k, m in enumerate(both)))
    found = torch.autograd.grad(sum(losses), weights)
    wanted = sum(of_images(plain, k) for k in range(2))
    theirs = torch.autograd.grad(wanted, [*plain.parameters(), *alphas(plain)])
    torch.testing.assert_close(sum(losses), wanted, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_replica_elsewhere_is_refused_whose_alphas_stay():
    model = network()
    cell = model.cells[0].to("meta")
    images = torch.empty(2, 12, 8, 8, device="meta")
    with pytest.raises(InputError, match="DistributedDataParallel"):
        fused.cell(cell, [images, images], model.mixing_weights([False])[0], "store", None)


def test_replicas_say_that_they_are_off_the_kernels(monkeypatch):
    model = accelerated(Stacked)
    served._warn_of_replicas.cache_clear()
    with pytest.warns(UserWarning, match="DistributedDataParallel"):
        one, _ = replicas(model, monkeypatch)
    assert not any("forward" in m.__dict__ for m in one.modules())
    assert any("forward" in m.__dict__ for m in model.modules())
    dartsfast.restore(model)
    assert not any("_replicate_for_data_parallel" in m.__dict__ for m in model.modules())
