"""Programs: one call has the bits of the operators one by one, a whole cell those of its nodes one by one."""

import pytest
import torch
from op_backends import instruction_set as instruction_set  # a fixture
from torch import nn

from dartsfast.backends import availability
from dartsfast.cnn.model_search import Network
from dartsfast.errors import InputError
from dartsfast.fused import cnn, programs
from dartsfast.fused.edge import Edge, Stage
from dartsfast.fused.forward import Node, Setting
from dartsfast.fused.memory import arenas, in_use, lifetimes
from dartsfast.fused.program import Place
from dartsfast.fused.programs import Prepared
from dartsfast.names import CNN_MEMORY_MODES

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)

SPACES = {
    "paper": {},
    "more steps than in the result": {"steps": 4, "multiplier": 2},
    "pools": {"primitives": ["max_pool_3x3", "none", "avg_pool_3x3"]},
    "maxima": {"primitives": ["max_pool_3x3", "skip_connect"]},
    "averages": {"primitives": ["avg_pool_3x3", "skip_connect"]},
    "skips": {"primitives": ["skip_connect", "none"]},
    "one stage": {"primitives": ["dil_conv_5x5", "skip_connect"]},
    "two stages": {"primitives": ["none", "sep_conv_7x7", "sep_conv_3x3"]},
}


def network(dtype=torch.float32, **options):
    torch.manual_seed(0)
    options = {"C": 3, "layers": 3, "steps": 2, "multiplier": 2, "backend": "cpu", **options}
    return Network(num_classes=4, criterion=nn.CrossEntropyLoss(), **options).to(dtype)


def everything(model, frozen=(), needed="both", N=3):
    """Return what two passes leave: losses, gradients of what is ``needed`` and of the images, buffers."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for name, p in model.named_parameters():
        p.requires_grad_(needed != "alphas" and not any(part in name for part in frozen))
    for a in model.arch_parameters():
        a.requires_grad_(needed != "weights")
    for _ in range(2):
        x = torch.randn(N, 3, 12, 8, generator=generator).to(model.alphas_normal.dtype).requires_grad_()
        loss = model._loss(x, torch.tensor([1, 3, 0])[:N])
        leaves = [x, *model.parameters(), *model.arch_parameters()]
        wanted = [t for t in leaves if t.requires_grad]
        found += [loss, *torch.autograd.grad(loss, wanted, allow_unused=True)]
    return [*found, *model.buffers()]


def same_bits(a, b):
    assert len(a) == len(b)
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(autouse=True)
def poisoned():
    """Fill memory that torch allocates with NaN; networks are so small that all of it is torch's."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def operator_by_operator(monkeypatch):
    monkeypatch.setattr(Setting, "runner", "walk")


@pytest.mark.parametrize("memory", CNN_MEMORY_MODES)
@pytest.mark.parametrize("space", ["paper", "maxima", "averages"])
def test_one_call_has_the_bits_of_the_operators_on_every_instruction_set(
    monkeypatch, instruction_set, memory, space
):
    found = everything(network(memory=memory, **SPACES[space]))
    operator_by_operator(monkeypatch)
    assert same_bits(found, everything(network(memory=memory, **SPACES[space])))


@pytest.mark.parametrize("memory", CNN_MEMORY_MODES)
@pytest.mark.parametrize("space", SPACES)
def test_one_call_has_the_bits_of_the_operators(monkeypatch, space, memory):
    options = {"dtype": torch.float64, "memory": memory, **SPACES[space]}
    found = everything(network(**options))
    assert not any(t is not None and t.isnan().any() for t in found)
    operator_by_operator(monkeypatch)
    assert same_bits(found, everything(network(**options)))


@pytest.mark.parametrize("needed", ["alphas", "weights", "both"])
@pytest.mark.parametrize(
    "frozen", [(), ("preprocess",), ("_ops.0.", "_ops.3."), ("1.op.1", "4.op.6"), ("cells.0", "stem")]
)
def test_any_set_of_gradients(monkeypatch, needed, frozen):
    found = everything(network(), frozen, needed)
    operator_by_operator(monkeypatch)
    assert same_bits(found, everything(network(), frozen, needed))


@pytest.mark.parametrize("memory", CNN_MEMORY_MODES)
@pytest.mark.parametrize("space", SPACES)
def test_gradients_arrive_at_a_state_in_the_order_in_which_autograd_adds_those_of_nodes(
    monkeypatch, space, memory
):
    """First the result's, then readers from the last node to the first."""
    found = everything(network(memory=memory, **SPACES[space]))
    with monkeypatch.context() as patch:
        patch.setattr(cnn, "_served", lambda *parts: False)
        assert same_bits(found, everything(network(memory=memory, **SPACES[space])))


@pytest.mark.parametrize("space", ["paper", "more steps than in the result"])
def test_only_what_lies_between_cells_is_kept(space):
    """Beside it norms, [norms, 2, C]; the stem's patches of 27 channels are made again as a whole."""

    def kept(memory):
        cells = [p for p in prepared(memory, **SPACES[space]) if p.slots[p.given[0]].shape[-1] != 27]
        return {len(slot.shape) for p in cells for slot in p.slots if slot.place == Place.KEPT}

    assert kept("cell") == {3}
    assert kept("recompute") == {3, 4}


def test_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(everything(network(C=16)))
    torch.set_num_threads(before)
    assert all(same_bits(result, results[0]) for result in results[1:])


def test_evaluation_keeps_nothing(monkeypatch):
    model = network().eval()
    x = torch.randn(2, 3, 8, 8)
    kept = []
    run = programs._Run.forward

    def spy(ctx, *args):
        out = run(ctx, *args)
        kept.append(args[0].forward.builder.program.slots)
        return out

    monkeypatch.setattr(programs._Run, "forward", spy)
    with torch.no_grad():
        found = model(x)
    assert kept and not any(slot.place == Place.KEPT for slots in kept for slot in slots)
    assert torch.equal(found, model(x))


def prepared(memory="store", **options):
    """Return every program of a network that ran, forward and backward."""
    found = []
    make = Prepared._runner

    def spy(self, program, **options):
        found.append(program)
        return make(self, program, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prepared, "_runner", spy)
        everything(network(memory=memory, **options))
    return found


@pytest.mark.parametrize("memory", CNN_MEMORY_MODES)
@pytest.mark.parametrize("space", SPACES)
def test_what_lives_at_once_lies_apart(space, memory):
    for program in prepared(memory, **SPACES[space]):
        layout, spans = arenas(program), lifetimes(program)
        size = {k: torch.Size(slot.shape).numel() for k, slot in enumerate(program.slots)}
        memory = [
            ("kept", layout.kept, layout.kept_size),
            ("temporary", layout.temporary, layout.temporary_size),
        ]
        for returned in {slot for slot, _ in layout.lent.values()}:
            lent = {k: offset for k, (slot, offset) in layout.lent.items() if slot == returned}
            assert max(spans[k][1] for k in lent) < first_use(program, returned)
            memory.append(("temporary", lent, size[returned]))
        for arena, places, end in memory:
            taken = sorted((offset, offset + size[k], k) for k, offset in places.items())
            assert all(last <= end for _, last, _ in taken)
            for i, (_, last, a) in enumerate(taken):
                for begin, _, b in taken[i + 1 :]:
                    if begin < last:
                        assert arena == "temporary"
                        assert spans[a][1] < spans[b][0] or spans[b][1] < spans[a][0]
        assert in_use(program) >= {*layout.temporary, *layout.lent}
        assert not layout.temporary.keys() & layout.lent.keys()


def first_use(program, slot):
    """Return the section in which something may be in a slot: norms are made with the section before."""
    found = next(
        (k, i.op)
        for k, section in enumerate(program.sections)
        for i in section
        if slot in {ref.slot for part in (*i.reads, *i.writes) for ref in part}
    )
    return found[0] - found[1].startswith("norm_stats")


@pytest.mark.parametrize("memory", CNN_MEMORY_MODES)
def test_nothing_is_read_before_it_is_written(memory):
    for program in prepared(memory):
        written = {k for k, slot in enumerate(program.slots) if slot.place in (Place.GIVEN, Place.KEPT)}
        for section in program.sections:
            news = {ref.slot for i in section for part in i.writes for ref in part}
            reads = {ref.slot for i in section for part in i.reads for ref in part}
            assert reads <= written | {ref.slot for i in section for part in i.reads[7:] for ref in part}
            written |= news


@pytest.mark.parametrize("memory", CNN_MEMORY_MODES)
def test_instructions_of_a_section_do_not_depend_on_each_other(memory):
    """No instruction writes what another of its section reads or writes."""
    for program in prepared(memory, layers=3):
        for section in program.sections:
            for a in section:
                writes = {ref for part in a.writes for ref in part}
                others = [i for i in section if i is not a]
                reads = {ref for i in others for part in i.reads for ref in part}
                assert not writes & reads
                assert not writes & {ref for i in others for part in i.writes for ref in part}


def test_recompute_needs_the_temporaries_of_one_edge():
    """Beside gradients of states, images that live at once are those of an edge."""
    store, recompute = (
        max(arenas(p).temporary_size + arenas(p).kept_size for p in prepared(memory, C=16))
        for memory in ("store", "recompute")
    )
    assert recompute < store / 2


def test_what_is_returned_lends_its_memory():
    """The gradients of a cell's inputs are made last: before, images lie there."""
    layouts = [(p, arenas(p)) for p in prepared("recompute", C=16)]
    lent = [sum(torch.Size(p.slots[k].shape).numel() for k in layout.lent) for p, layout in layouts]
    assert max(lent) > max(layout.temporary_size for _, layout in layouts)


def test_a_program_takes_only_what_it_was_built_for():
    prepared = single(torch.eye(5)[..., None, None])
    x = torch.randn(2, 3, 4, 5)
    prepared([x], torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="contiguous tensors on the CPU"):
        prepared([x[:1]], torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="another number of tensors"):
        prepared.runner.run([x], ())
    with pytest.raises(RuntimeError, match=r"code ends early|holds a count of"):
        given = [x, torch.ones(1, 1), torch.eye(5), torch.zeros(5), torch.ones(5), torch.tensor(0)]
        torch.ops.dartsfast.run_program(prepared.runner.code[:40], given, [])
    assert prepared([x], torch.ones(1, 1)).isfinite().all()  # and goes on after each


def single(weight, norm=None, inputs=((2, 3, 4, 5),)):
    norm = nn.BatchNorm2d(weight.shape[0], affine=False) if norm is None else norm
    edge = Edge(1, (0,), relu=False, single=[Stage((weight,), 1, norm)])
    setting = Setting(inputs, (1, 1), torch.float32, torch.device("cpu"), "store", None, True)
    return Prepared([Node([(0, edge, 0)])], 1, setting)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"convolutions of 5 channels have weights of \[6, 6, 1, 1\]"):
        single(torch.eye(6)[..., None, None])
    with pytest.raises(InputError, match=r"a batch norm of 5 channels has running_mean \[6\]"):
        single(torch.eye(5)[..., None, None], nn.BatchNorm2d(6, affine=False))
    with pytest.raises(InputError, match="batch norm over one value"):
        single(torch.eye(5)[..., None, None], inputs=((1, 1, 1, 5),))
    model = network()
    with pytest.raises(InputError, match=r"mixing weights must be \[5 edges, operations\], got \[3, 8\]"):
        model.cells[0](torch.randn(2, 9, 8, 8), torch.randn(2, 9, 8, 8), torch.ones(3, 8))


def test_a_backward_can_be_done_again_as_long_as_its_graph_is_kept():
    model = network()
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    wanted = model._loss(x, y)
    loss = model._loss(x, y)
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss.backward()
    assert same_bits(first, [p.grad for p in model.parameters()])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    assert torch.equal(model._loss(x, y), wanted)
