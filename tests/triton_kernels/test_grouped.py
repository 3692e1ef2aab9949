"""Cells in launches of grouped kernels: the bits of the same programs operator by operator."""

from unittest import mock

import pytest
import torch
from checks import DEVICE, MARKS
from op_backends import few_programs

from dartsfast.backends.triton import INTERPRETED
from dartsfast.cnn.model_search import Cell
from dartsfast.errors import InputError
from dartsfast.fused.forward import Setting
from dartsfast.names import CNN_MEMORY_MODES

KERNELS = ("grouped",)
pytestmark = MARKS
SPACE = (
    "none",
    "max_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_5x5",
    "avg_pool_3x3",
    "sep_conv_3x3",
)


@pytest.fixture(autouse=True)
def large_tiles():
    if not INTERPRETED:
        yield
        return
    with few_programs(8):
        yield


class Case:
    """A cell and its inputs."""

    def __init__(self, reduction=False, C=5, before=6, primitives=SPACE, dtype=torch.float32, **options):
        torch.manual_seed(3)
        sizes = 2, 2, before, 7, C, reduction, False
        module = Cell(*sizes, backend="triton", primitives=primitives, **options).to(DEVICE, dtype)
        self.cell = module.requires_grad_()
        generator = torch.Generator().manual_seed(4)
        shapes = (3, before, 6, 4), (3, 7, 6, 4)
        *self.images, self.weights = (
            torch.randn(shape, generator=generator, dtype=torch.float32).to(DEVICE, dtype)
            for shape in (*shapes, (5, len(primitives)))
        )

    def run(self, grouped, asked):
        """Return the result, the gradients that ``asked`` names, and running statistics."""
        given = {"images": self.images, "alphas": [self.weights], "weights": list(self.cell.parameters())}
        before = {name: value.clone() for name, value in self.cell.named_buffers()}
        for name, tensors in given.items():
            for t in tensors:
                t.requires_grad_(name in asked)
        with mock.patch.object(Setting, "runner", "triton" if grouped else "walk"):
            out = self.cell(*self.images, self.weights)
            wanted = [t for name in asked for t in given[name]]
            seed = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=DEVICE).view(out.shape)
            found = torch.autograd.grad(out, wanted, seed, allow_unused=True) if wanted else []
        buffers = [value.clone() for value in self.cell.buffers()]
        with torch.no_grad():
            for name, value in self.cell.named_buffers():
                value.copy_(before[name])
        return [out.detach(), *(g for g in found if g is not None), *buffers]


def same(case, *asked):
    found, wanted = case.run(True, asked), case.run(False, asked)
    assert len(found) == len(wanted) and all(t.isfinite().all() for t in found)
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


EVERYTHING = "images", "alphas", "weights"


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("memory", CNN_MEMORY_MODES)
def test_cells_have_the_bits_of_single_operators(launches, exact, poisoned, reduction, memory):
    assert same(Case(reduction, C=6 if reduction else 5, memory=memory), *EVERYTHING)
    assert {"grouped_conv_kernel", "grouped_sum_kernel", "grouped_means_kernel"} <= set(launches)


@pytest.mark.parametrize("asked", [("alphas",), ("weights",), ("images",), ()], ids=str)
def test_only_what_is_asked_for_is_computed(launches, exact, poisoned, asked):
    assert same(Case(C=8, primitives=("max_pool_3x3", "skip_connect", "sep_conv_3x3")), *asked)
    assert ("grouped_stage_backward_kernel" in launches) == bool(asked)
    assert ("grouped_weight_sums_kernel" in launches) == ("weights" in asked)
    assert ("grouped_sum_backward_kernel" in launches) == bool(asked)


@pytest.mark.parametrize("reduction", [False, True])
def test_chunks_and_splits_of_a_program_follow_each_other(exact, poisoned, reduction):
    """Of both kinds there are several for every program: 216 pixels by 32, or 64 of what is half as large."""
    from dartsfast.kernels import branch_conv_backward as single

    from dartsfast.fused.groups import backward

    patches = mock.patch.multiple(single, SPLITS=2, CHUNK=1), mock.patch.object(backward, "_PROGRAMS", 2)
    with patches[0], patches[1], few_programs(1):
        case = Case(reduction, C=6, primitives=("sep_conv_3x3", "dil_conv_5x5"))
        case.images = [torch.cat([x, 2 * x, -x]) for x in case.images]
        assert same(case, *EVERYTHING)


def test_a_space_of_skips_and_pools(exact, poisoned):
    assert same(Case(True, C=6, primitives=("skip_connect", "avg_pool_3x3")), *EVERYTHING)
    assert same(Case(primitives=("skip_connect", "skip_connect", "max_pool_3x3")), *EVERYTHING)


def test_float64_and_many_channels(exact, poisoned):
    assert same(Case(C=70, primitives=("skip_connect", "dil_conv_3x3"), dtype=torch.float64), *EVERYTHING)


def test_evaluation_and_frozen_weights(exact, poisoned):
    case = Case(primitives=("sep_conv_3x3", "avg_pool_3x3"))
    case.cell.eval()
    assert same(case, *EVERYTHING)
    case.cell.train()
    next(iter(case.cell._ops[0].parameters())).requires_grad_(False)
    case.cell._ops[1].eval()  # its norms go by their running statistics, and do not move them
    assert same(case, *EVERYTHING)


def test_weights_may_move(exact):
    """The addresses that a program knows are those of its last pass."""
    case = Case(primitives=("sep_conv_3x3",))
    before = case.run(True, EVERYTHING)
    keep = [p.data for p in case.cell.parameters()]  # so that nothing else lies there
    for p in case.cell.parameters():
        p.data = p.data.clone()
    with torch.no_grad():
        for old in keep:
            old.fill_(float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, case.run(True, EVERYTHING), strict=True))


@pytest.mark.parametrize("memory", CNN_MEMORY_MODES)
def test_half_precision_storage_is_near_single_operators(exact, poisoned, memory):
    case = Case(memory=memory, storage_dtype=torch.bfloat16)
    found, wanted = case.run(True, EVERYTHING), case.run(False, EVERYTHING)
    assert torch.equal(found[0], wanted[0])
    for a, b in zip(found[1:], wanted[1:], strict=True):
        # Pools that are computed again are not rounded to half precision before their norm.
        assert (a - b).double().norm() <= 2 * torch.finfo(torch.bfloat16).eps * b.double().norm()


def test_statistics_in_another_dtype_are_refused():
    case = Case(primitives=("max_pool_3x3",))
    norm = case.cell._ops[0]._ops[0][1]
    norm.running_mean = norm.running_mean.double()
    with pytest.raises(InputError, match="running statistics must be torch.float32"):
        case.run(True, EVERYTHING)
