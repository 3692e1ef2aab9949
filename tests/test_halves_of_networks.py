"""Networks whose kernels store images in 16 bits: the bits of the operators, and how near to float64."""

from unittest import mock

import pytest
import torch
from small_runs import CONFIG, OPTIONS, same, stopped_and_resumed
from test_fused import batch, kept_and_gradients, network, relative, search
from test_fused import one_thread as one_thread  # a fixture

from dartsfast.backends import availability
from dartsfast.backends.table import STORAGE_DTYPES
from dartsfast.fused import programs
from dartsfast.fused.walk import Walk
from dartsfast.names import CNN_MEMORY_MODES
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.search import search_cnn

_cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not _cpu.available, reason=_cpu.reason)


def left(dtype, memory="store"):
    """Return all that iterations of the second order leave."""
    return search(network("cpu", torch.float32, storage_dtype=dtype, memory=memory), 1, 2, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "memory"), [*((torch.bfloat16, mode) for mode in CNN_MEMORY_MODES), (torch.float16, "store")]
)
def test_storage_in_halves_is_that_of_the_operators_one_by_one(dtype, memory):
    found = left(dtype, memory)
    with mock.patch.object(programs, "Native", Walk):
        wanted = left(dtype, memory)
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)
    plain = left(None)
    assert any(not torch.equal(found[k], plain[k]) for k in plain)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
def test_storage_in_halves_is_nearer_than_autocast(dtype):
    """Gradients of the alphas against stock modules in float64."""
    options = {"C": 8, "steps": 4, "multiplier": 4}
    size = {"N": 8, "HW": 16}

    def gradients(backend, of=torch.float32, **more):
        return kept_and_gradients(network(backend, of, **options, **more), *batch(of, **size))

    _, truth = gradients("reference", torch.float64)
    kept, full = gradients("cpu")
    halved, found = gradients("cpu", storage_dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        _, rough = gradients("reference")
    for a, b, wanted in zip(found, rough, truth, strict=True):
        assert 0 < relative(a, wanted) <= 2 * relative(b, wanted)
    assert halved < 0.7 * kept


def test_frozen_weights_and_evaluation_take_stored_images():
    """Weights without gradients leave the alphas' as they are; an evaluation keeps nothing, but rounds."""
    x, y = batch(torch.float32)
    stored = {"dtype": torch.float32, "storage_dtype": torch.bfloat16}
    frozen = network("cpu", **stored)
    for p in frozen.parameters():
        p.requires_grad_(False)
    _, found = kept_and_gradients(frozen, x, y)
    _, wanted = kept_and_gradients(network("cpu", **stored), x, y)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    logits = {}
    for memory in CNN_MEMORY_MODES:
        with torch.no_grad():
            logits[memory] = network("cpu", **stored, memory=memory).eval()(x)
    exact = network("cpu", torch.float32).eval()(x)
    assert not torch.equal(logits["store"], exact) and relative(logits["store"], exact) < 0.05
    assert all(torch.equal(one, logits["store"]) for one in logits.values())


def test_a_stopped_search_that_stores_in_halves_goes_on_to_the_same_bits(tmp_path):
    options = {**OPTIONS["cnn"](tmp_path), "storage_dtype": "bfloat16", "backend": "cpu", "order": 2}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    search_cnn(CONFIG["cnn"](**options, out=str(whole)))
    stopped_and_resumed(options, stopped, [(0, 1), (1, 0)])
    same(load_checkpoint(whole, "cnn"), load_checkpoint(stopped, "cnn"))
