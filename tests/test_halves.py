"""Images in 16 bits: float32 arithmetic, rounded once where something is stored.

On every instruction set of the kernels for CPUs; those for CUDA run here where they are emulated.
"""

import pytest
import torch
from comparisons import same_bits
from op_agreement import rounded
from op_backends import instruction_set as instruction_set  # a fixture
from op_backends import native_only, needs_kernels
from op_calls import call
from op_cases import CELLS, CONVS, MIXES, POOLS
from torch.utils._pytree import tree_leaves, tree_map

from dartsfast.errors import InputError
from dartsfast.fused import images
from dartsfast.fused.encode import Native
from dartsfast.fused.forward import Setting
from dartsfast.fused.program import Place, Program, add, copy, mixed_sum, pool3x3

kernels = torch.ops.dartsfast
pytestmark = [needs_kernels, native_only]

HALVES = (torch.bfloat16, torch.float16)
STORED = {
    "branch_conv": (0,),
    "branch_conv_backward": (1, 3),
    "pool3x3": (0,),
    "pool3x3_backward": (3,),
    "mixed_sum": (0,),
    "mixed_sum_backward": (1,),
}
"""What programs store in 16 bits, by argument: the others need a copy."""


def as_stored(name, args, dtype):
    """Return ``args`` as programs store them."""
    return tuple(narrow(a, dtype) if i in STORED[name] else a for i, a in enumerate(args))


def every_second(name, args, dtype):
    """Return ``args`` with half of what they hold in 16 bits."""
    flat = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)][::2]
    return tree_map(lambda t: narrow(t, dtype) if any(t is one for one in flat) else t, args)


def everything(name, args, dtype):
    """Return ``args`` in 16 bits, weights and statistics too."""
    return narrow(args, dtype)


def narrow(args, dtype):
    return tree_map(lambda t: t.to(dtype) if isinstance(t, torch.Tensor) else t, args)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", [*CONVS, *CELLS, *POOLS, *MIXES], ids=str)
def test_what_is_stored_in_halves_is_the_oracles_rounded(case, dtype, instruction_set):
    for name, given in case.calls():
        args = as_stored(name, given, dtype)
        assert same_bits(call(name, args), rounded(name, args)), name


@pytest.mark.parametrize(
    ("halved", "dtype"),
    [(every_second, torch.float16), (everything, torch.bfloat16)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("case", [*CONVS, *CELLS, *POOLS, *MIXES], ids=str)
def test_what_programs_do_not_store_in_halves_is_made_wide(case, halved, dtype):
    for name, given in case.calls():
        args = halved(name, given, dtype)
        assert same_bits(call(name, args), rounded(name, args)), name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", [*CONVS, *CELLS], ids=str)
def test_z_may_be_stored_in_another_dtype_than_x(case, dtype, instruction_set):
    name, given = case.calls()[0]
    for args in ((*given, dtype), (*narrow(given, dtype), torch.float32)):
        z, stats = call(name, args)
        assert z.dtype == args[7] and stats.dtype == torch.float32
        assert same_bits((z, stats), rounded(name, args))


def unusual():
    """Return float32 numbers of any exponent, NaN, infinities, and all that rounding turns at."""
    bits = torch.randint(-(2**31), 2**31, (2**15,), generator=torch.Generator().manual_seed(0))
    every = torch.arange(2**16).to(torch.int16)
    exact = torch.cat([every.view(dtype).float() for dtype in HALVES])
    numbers = exact[exact.isfinite()].view(torch.int32)
    ties = [numbers + step + k for step in (0x8000, 0x1000) for k in (-1, 0, 1)]
    largest = torch.tensor([65504.0, 65519.99, 65520.0, 3.4e38, torch.inf, torch.nan])
    small = numbers.view(torch.float32)[numbers.view(torch.float32).abs() < 2**-12]
    between = (small[:-1] + small[1:]) / 2
    around = [part.view(torch.float32) for part in (bits.to(torch.int32), numbers, *ties)]
    return torch.cat([largest, -largest, between, *around])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_numbers_are_rounded_to_nearest_and_read_as_they_are(dtype, instruction_set):
    """A product with 1, which makes -0 to 0, and the maximum of a pixel alone."""
    numbers, one = unusual(), torch.ones(1, 1, 1, 1)
    x = numbers[: len(numbers) // 64 * 64].reshape(1, -1, 64, 1)
    options = None, [], [one], [], 1, False
    z, _ = kernels.branch_conv(x, *options, dtype)
    assert same_bits(z[0], (x + 0).to(dtype))
    every = torch.arange(2**16).to(torch.int16).view(dtype)
    z, _ = kernels.branch_conv(every.reshape(1, -1, 64, 1), *options, torch.float32)
    assert same_bits(z[0], every.reshape(1, -1, 64, 1).float() + 0)
    z, _ = kernels.pool3x3(every.reshape(-1, 1, 1, 8), 1)
    assert same_bits(z[0], every.reshape(-1, 1, 1, 8))


def test_what_arithmetic_does_not_serve_is_refused():
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(6, 5, 1, 1)
    for args in ((x.double(), None, [], [weight.half()]), (x.bfloat16(), None, [], [weight.double()])):
        with pytest.raises(RuntimeError, match="pointwise must have the dtype of the other tensors"):
            kernels.branch_conv(*args, [], 1, True)
    with pytest.raises(RuntimeError, match="z cannot be stored in this dtype"):
        kernels.branch_conv(x, None, [], [weight], [], 1, True, torch.float64)
    with pytest.raises(RuntimeError, match="x must be float32, float64, bfloat16 or float16"):
        kernels.pool3x3(torch.ones(1, 2, 2, 3, dtype=torch.int32), 1)
    with pytest.raises(RuntimeError, match="must be float32 or float64"):
        kernels.norm_stats_(torch.ones(1, 2, 3).half(), [], [], [], 0.1, 1e-5, 4)


def setting(dtype=torch.float32, storage=torch.bfloat16):
    return Setting(((2, 3, 4, 8),), (1, 1), dtype, torch.device("cpu"), "store", storage, True)


def test_storage_in_halves_goes_with_arithmetic_in_float32():
    with pytest.raises(InputError, match="go with arithmetic in float32, got torch.float64"):
        setting(torch.float64)


def test_what_is_kept_of_an_image_is_of_what_it_is_now():
    x = torch.ones(1, 2, 2, 3)
    kept = images.as_stored(x, torch.bfloat16)
    assert images.as_stored(x, torch.bfloat16) is kept
    x.mul_(2)
    assert same_bits(images.as_stored(x, torch.bfloat16), x.bfloat16()) and same_bits(
        kept, torch.ones_like(kept)
    )
    assert images.as_stored(x, torch.float16).dtype == torch.float16


def kept_and_doubled(C, stored):
    """Return a program that keeps x [2, 3, 4, C] as ``stored``, and returns x plus that."""
    program = Program()
    x, norm, weight = (program.new(shape, Place.GIVEN) for shape in ((2, 3, 4, C), (2, C), (1,)))
    kept, out = program.new(x.shape, Place.KEPT, stored), program.new(x.shape, Place.RETURNED)
    program.section([copy(x, kept)])
    program.section([mixed_sum([kept], [norm], [weight.row(0)], x, out, [1])])
    return program


@pytest.mark.parametrize("C", [8, 12, 5])
@pytest.mark.parametrize("stored", HALVES, ids=str)
def test_programs_keep_images_in_halves(stored, C, instruction_set):
    x = torch.randn(2, 3, 4, C)
    norm = torch.tensor([0.0, 1.0])[:, None].repeat(1, C)
    (out,), (kept,) = Native(kept_and_doubled(C, stored), setting()).run([x, norm, torch.ones(1)], [])
    assert kept.dtype == stored and same_bits(kept[: x.numel()].view(x.shape), x.to(stored))
    assert same_bits(out, x + x.to(stored).float())


def test_programs_refuse_what_no_kernel_takes():
    program = Program()
    x = program.new((2, 3, 4, 8), Place.GIVEN, torch.bfloat16)
    program.section([add(x, x, program.new(x.shape, Place.RETURNED))])
    image = torch.randn(2, 3, 4, 8)
    with pytest.raises(RuntimeError, match="stored in 16 bits where no kernel takes that"):
        Native(program, setting()).run([image.bfloat16()], [])
    for other in (image, image.half()):
        with pytest.raises(RuntimeError, match="given a tensor of another dtype"):
            Native(program, setting()).run([other], [])
    with pytest.raises(RuntimeError, match="does not fit the dtype of its arithmetic"):
        Native(program, setting(torch.float64, None)).run([image.bfloat16()], [])
    program = Program()
    x = program.new((2, 3, 4, 8), Place.GIVEN)
    z = [program.new(x.shape, Place.KEPT, torch.bfloat16) for _ in range(2)]
    program.section([pool3x3(x, 1, z, list(program.new((2, 2, 8), Place.RETURNED).rows()))])
    with pytest.raises(RuntimeError, match="stored in 16 bits where no kernel takes that"):
        Native(program, setting()).run([image], [])
    runner = Native(kept_and_doubled(8, torch.float16), setting())
    given = [image, torch.ones(2, 8), torch.ones(1)]
    (_,), (kept,) = runner.run(given, [])
    for wrong in (kept.bfloat16(), kept[1:], kept.float()):
        with pytest.raises(RuntimeError, match="kept another arena"):
            runner.run(given, [wrong])
