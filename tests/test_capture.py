"""Iterations as CUDA graphs: what is recorded and when, on stand-ins; and that nothing waits for a device."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import recording
import torch
from recording import WAITS
from small_data import image_folder, text_folder
from torch.utils._python_dispatch import TorchDispatchMode

from dartsfast.backends import availability
from dartsfast.cli import _parser
from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
from dartsfast.rnn import architect as rnn_architect
from dartsfast.rnn.model import search_loss
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.search import CNNConfig, RNNConfig, capture
from dartsfast.search.cnn import CNNSearch
from dartsfast.search.rnn import RNNSearch
from dartsfast.search.search import Search

cpu = availability("cpu")


DEVICE = torch.device("cuda:1")


class Step:
    """Adds up its first input, as an iteration moves weights; counts how often it really ran."""

    def __init__(self, factor=1.0):
        self.total, self.factor, self.python = torch.zeros(()), factor, 0

    def __call__(self, x):
        self.python += 1
        self.total += self.factor * x.sum()
        return (self.total.clone(),)


@pytest.fixture
def unseen():
    """Let labels pass unseen, as on a GPU."""
    with recording.unseen():
        yield


@pytest.fixture
def cuda():
    """Stand-ins for what capture asks of torch.cuda; gives the streams that are made."""
    with recording.played() as made:
        yield made


def test_a_recording_gives_what_the_iterations_give(cuda):
    step, plain = Step(), Step()
    captured = capture.Captured(step, DEVICE)
    for i in range(12):
        x = torch.full((2 if i % 3 else 5,), float(i))
        (got,), (wanted,) = captured(x, numbers=(0.1,)), plain(x)
        assert got == wanted, i
    # Three to warm up, both shapes among them, one recording a shape; the rest are replays, without Python.
    assert step.python == capture.WARM_UP + 2 and len(captured.recordings) == 2
    assert len(cuda) == 2  # one stream beside the current one


def test_other_numbers_are_recorded_anew_and_old_recordings_dropped(cuda):
    step = Step()
    captured = capture.Captured(step, DEVICE)
    for _ in range(capture.WARM_UP):
        captured(torch.zeros(1), numbers=(0.0,))
    for lr in range(1, 8):
        step.factor = float(lr)
        before = step.total.item()
        for _ in range(3):
            captured(torch.ones(1), numbers=(float(lr),))
        assert step.total.item() == before + 3 * lr
    # What is new runs once as it is, is recorded the second time, then replayed.
    assert step.python == capture.WARM_UP + 2 * 7 and len(captured.recordings) == capture.KEPT
    captured(torch.ones(1), numbers=(4.0,))  # the oldest: now the last used, so that another goes
    captured(torch.ones(1), numbers=(3.0,))
    assert [numbers[0] for numbers, _ in captured.recordings] == [6.0, 7.0, 4.0, 3.0]


def test_what_cannot_be_recorded_runs_as_it_is_aloud(cuda, monkeypatch):
    def refuse(graph, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    step = Step()
    captured = capture.Captured(step, DEVICE)
    for _ in range(capture.WARM_UP):
        captured(torch.ones(1), numbers=())
    with pytest.warns(UserWarning, match="cannot be recorded, so none is: operation not permitted"):
        (out,) = captured(torch.ones(1), numbers=())
    assert out == capture.WARM_UP + 1
    for i in range(2, 40):
        (out,) = captured(torch.ones(1), numbers=())
        assert out == capture.WARM_UP + i == step.python
    assert len(cuda) == 2 and captured.pool is None and not captured.recordings


def test_a_recording_that_fails_puts_back_what_torch_leaves(cuda, monkeypatch):
    """A graph whose end fails leaves its stream the current one, and the generator to the recording."""
    used, ended, current = [], [], ["default"]

    @contextlib.contextmanager
    def graph(graph, pool):
        used.append(graph)
        current[0] = "capture"
        try:
            yield
        finally:
            if len(used) == 1:
                raise RuntimeError("operation failed due to a previous error")
            current[0] = "default"
            ended.append(graph)

    @contextlib.contextmanager
    def stream(given):
        before = current[0]
        try:
            yield
        finally:
            current[0] = before

    def step(x):
        if used and not ended:
            raise RuntimeError("no such operator in a graph")
        return (x + 1,)

    captured = capture.Captured(step, DEVICE)
    for _ in range(capture.WARM_UP):
        captured(torch.ones(1), numbers=())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    with pytest.warns(UserWarning, match="so none is: no such operator in a graph"):
        (out,) = captured(torch.ones(1), numbers=())
    assert out == 2 and current == ["default"]
    assert len(used) == 2 and ended == used[1:]  # one more, of nothing, that ends as it should
    assert used[0] in capture._failed  # the allocator may still ask it


def test_what_must_be_recorded_and_cannot_be_raises(cuda, monkeypatch):
    def refuse(graph, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    captured = capture.Captured(Step(), DEVICE, required=True)
    for _ in range(capture.WARM_UP):
        captured(torch.ones(1), numbers=())
    with pytest.raises(InputError, match="cannot be recorded: operation not permitted.*--no-capture"):
        captured(torch.ones(1), numbers=())


@pytest.mark.parametrize(
    ("given", "device", "captures"),
    [
        ([], "cuda", True),
        (["--capture"], "cuda", True),
        (["--no-capture"], "cuda", False),
        ([], "cpu", False),
        (["--capture"], "cpu", False),
    ],
)
@pytest.mark.parametrize("kind", ["cnn", "rnn"])
def test_a_search_captures_on_cuda_unless_told_not_to(kind, given, device, captures):
    args = vars(_parser().parse_args(["search", kind, *given]))
    config = args["config"](**{name: value for name, value in args.items() if name == "capture"})
    search = SimpleNamespace(config=config, device=torch.device(device))
    assert Search._captures.fget(search) is captures
    assert (config.capture is True) is ("--capture" in given)
    config.check()


def test_a_capture_that_is_neither_yes_nor_no_is_refused():
    with pytest.raises(InputError, match="capture must be of type bool, got 1"):
        CNNConfig(capture=1).check()


class Waits(TorchDispatchMode):
    """Notes every operator that would wait for a GPU, or copy from the host to it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def capturing(monkeypatch, unseen):
    """Pretends, from its call on, that a graph is recorded on a GPU."""

    def start():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    return start


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_an_architecture_step_waits_for_no_device(unrolled, memory, monkeypatch, capturing):
    torch.manual_seed(0)
    model = Network(4, 5, 3, torch.nn.CrossEntropyLoss(), 2, 2, backend="cpu", memory=memory)
    sgd = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9)
    args = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=1e-3, arch_weight_decay=1e-3)
    architect = Architect(model, args)
    monkeypatch.setattr(architect.optimizer, "step", lambda: None)  # Adam's own affair
    batch = torch.randn(2, 3, 8, 8), torch.tensor([1, 4])

    def iteration():
        architect.step(*batch, *batch, 0.025, sgd, unrolled=unrolled)
        sgd.zero_grad()
        model._criterion(model(batch[0]), batch[1]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        sgd.step()

    iteration()  # makes the constants and the optimiser's state
    capturing()
    with Waits() as waits:
        iteration()
    assert waits.found == []


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_an_rnn_iteration_waits_for_no_device(unrolled, memory, monkeypatch, capturing):
    torch.manual_seed(0)
    model = RNNModelSearch(11, 6, 6, 6, backend="cpu", memory=memory)
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    args = SimpleNamespace(wdecay=5e-7, clip=0.25, arch_lr=3e-3, arch_wdecay=1e-3)
    architect = rnn_architect.Architect(model, args)
    monkeypatch.setattr(architect.optimizer, "step", lambda: None)
    words, hidden = torch.randint(11, (4, 3)), model.init_hidden(3)

    def iteration():
        batch = words[:-1], words[1:]
        architect.step(hidden, *batch, hidden, *batch, sgd, unrolled)
        loss, _, _ = search_loss(model, hidden, *batch, 1e-3)
        sgd.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        sgd.step()

    iteration()
    capturing()
    with Waits() as waits:
        iteration()
    assert waits.found == []


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
@pytest.mark.parametrize("stock", [True, False])
def test_the_loss_of_a_gpu_waits_for_no_device(stock, monkeypatch, capturing):
    """Neither stock PyTorch's, which it has from 2.13 on, nor ours; padding or not."""
    if not stock:
        monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    torch.manual_seed(0)
    model = RNNModelSearch(11, 6, 6, 6, backend="cpu")
    monkeypatch.setattr(RNNModelSearch, "backend", "triton")
    x, target = torch.randn(4, 3, 6, requires_grad=True), torch.randint(11, (4, 3))
    target[1] = -100
    capturing()
    with Waits() as waits:
        model._decoded_loss(x, target).backward()
    assert waits.found == [] and x.grad[0].any() and not x.grad[1].any()


def second_order_rnn(preset):
    """Return an iteration's alpha step with dropout, and the model."""
    torch.manual_seed(0)
    model = RNNModelSearch(11, 6, 6, 6, backend="cpu")
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    args = SimpleNamespace(wdecay=5e-7, clip=0.25, arch_lr=3e-3, arch_wdecay=1e-3)
    architect = rnn_architect.Architect(model, args, preset=preset)
    words, hidden = torch.randint(11, (4, 3)), model.init_hidden(3)

    def step(words):
        batch = words[:-1], words[1:]
        architect.step(hidden, *batch, hidden, *batch, sgd, True)
        return (model.weights.grad,)

    return step, words, model


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
def test_one_mask_for_two_passes_is_not_recorded_and_says_why(monkeypatch, capturing):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)  # its own affair
    step, words, model = second_order_rnn("paper")
    step(words)
    weights = [p.clone() for p in model.parameters()]
    other, *_ = second_order_rnn("code")
    other(words)
    capturing()
    with pytest.raises(RuntimeError, match=r"one mask .*preset='paper'.* cannot be recorded"):
        step(words)
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), weights, strict=True))
    monkeypatch.setattr(torch, "get_rng_state", None)  # which the other preset does not ask for
    other(words)


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
def test_what_cannot_be_recorded_leaves_the_search_as_it_was(cuda):
    """The paper's second order: the recording fails between the passes, and the iteration runs again."""
    step, words, _ = second_order_rnn("paper")
    wanted = [step(words)[0].clone() for _ in range(capture.WARM_UP + 2)]
    step, words, _ = second_order_rnn("paper")
    captured = capture.Captured(step, DEVICE)
    got = [captured(words, numbers=())[0].clone() for _ in range(capture.WARM_UP)]
    with pytest.warns(UserWarning, match="so none is: one mask for both"):
        got.append(captured(words, numbers=())[0].clone())
    got.append(captured(words, numbers=())[0].clone())
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


SEARCHES = {
    "cnn": (CNNSearch, CNNConfig(image_size=8, init_channels=2, layers=1, batch_size=1, epochs=2)),
    "rnn": (RNNSearch, RNNConfig(batch_size=4, bptt=6, seed=24, emsize=8, nhid=8, nhidlast=8, epochs=1)),
}
# By recording. CNN: of both epochs, which have learning rates of their own. RNN: of texts of half the
# length, four of them, and of whole ones.
REPLAYS = {"cnn": [6, 8], "rnn": [3, 18]}


def searched(kind, **options):
    """Return a search with ``capture`` after its epochs, and what it showed on the way."""
    search, config = SEARCHES[kind]
    search, shown = search(dataclasses.replace(config, device="cpu", capture=True, **options)), []
    for epoch in range(config.epochs):
        search.epoch, search.step = epoch, 0
        shown += [iteration.metrics for iteration in search.iterations()]
        row = search.finish_epoch()
        shown.append((row["train_loss"], row["valid_loss"]))
    return search, shown


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
@pytest.mark.parametrize(
    ("kind", "order", "memory"), [("cnn", 2, "store"), ("rnn", 1, "store"), ("rnn", 2, "recompute")]
)
def test_a_search_from_recordings_has_the_bits_of_one_without(
    kind, order, memory, cuda, monkeypatch, tmp_path
):
    folder = {"cnn": image_folder, "rnn": text_folder}[kind](tmp_path)
    options = {
        "data": f"imagefolder:{folder}" if kind == "cnn" else str(folder),
        "order": order,
        "memory": memory,
    }
    monkeypatch.setattr(Search, "_captures", True)
    search, found = searched(kind, **options)
    replays = [one.graph.replays for one in search.captured.recordings.values()]
    assert sorted(replays) == REPLAYS[kind]
    monkeypatch.setattr(capture, "WARM_UP", len(found))
    plain, wanted = searched(kind, **options)
    assert not plain.captured.recordings and found == wanted
    for name, value in plain.model.state_dict().items():
        assert torch.equal(search.model.state_dict()[name], value), name


def test_waits_are_noticed():
    with Waits() as waits:
        torch.ones(2).sum().item()
        torch.tensor([1.0])
    assert waits.found == ["_local_scalar_dense", "lift_fresh"]
