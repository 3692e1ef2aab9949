"""What launches of a cell touch in the interpreter, byte by byte, is what their plan counts."""
# ruff: noqa: E402 - what follows needs Triton

from unittest import mock

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("kernels run in Triton's interpreter: set TRITON_INTERPRET=1", allow_module_level=True)

from checked import ADDRESS, TAG, Checked
from dartsfast.kernels.grouped import Work
from mended import mended

from dartsfast.cnn.model_search import Cell
from dartsfast.fused.forward import Setting

SPACE = "none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"
SIZE = 4  # bytes of a number of a program's own memory


class Touched(Checked):
    """Counts the bytes of every launch, each place once, but for tables; weights lie at bare addresses."""

    def __init__(self, order):
        super().__init__(order)
        self.bytes = []

    def _launch(self, original, executor, *args, **kwargs):
        self.places, self.bare = {}, {}
        super()._launch(original, executor, *args, **kwargs)
        own = sum(shadow.itemsize * at.sum() for shadow, at in self.places.values())
        self.bytes.append(int(own) + sum(size * len(at) for size, at in self.bare.items()))

    def _elements(self, pointers, mask, dtype):
        data = np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)]
        tags = data >> np.uint64(TAG)
        self.bare.setdefault(dtype.itemsize, set()).update(data[tags == 0].tolist())
        for tag in np.unique(tags[tags > 0]):
            argument = self.arguments[int(tag) - 1]
            shadow, addresses = argument.shadow, (data[tags == tag] & ADDRESS).astype(np.int64)
            size = max(dtype.itemsize, shadow.itemsize)  # taps of windows are bytes of larger numbers
            first = (addresses - shadow.address) // size * size + shadow.address
            at = argument.at(np.unique(first) if size > dtype.itemsize else first, size)
            self._require(at is not None, f"goes outside of {argument.text}")
            if dtype != np.int64:  # of tables
                places = np.zeros(len(shadow.written), bool)
                self.places.setdefault(id(shadow), (shadow, places))[1][at] = True
            yield argument.text, shadow, at


@pytest.mark.parametrize("storage", [None, torch.bfloat16], ids=str)
def test_launches_of_a_cell_touch_what_their_plan_counts(storage, monkeypatch):
    monkeypatch.setenv("DARTSFAST_SELFCHECK", "0")
    torch.manual_seed(3)
    cell = Cell(2, 2, 8, 8, 8, True, False, backend="triton", primitives=SPACE, storage_dtype=storage)
    images = [torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last).requires_grad_() for _ in "01"]
    weights, works = torch.randn(5, len(SPACE), requires_grad=True), []
    launch = Work.launch

    def noted(work, *tables):
        works.append(work)
        launch(work, *tables)

    patches = mock.patch.object(Work, "launch", noted), mock.patch.object(Setting, "runner", "triton")
    with mended(), Touched("random") as memory, patches[0], patches[1]:
        out = cell(*images, weights)
        torch.autograd.grad(out, [*images, weights, *cell.parameters()], torch.ones_like(out))
    assert len(works) == len(memory.bytes) > 30
    for work, touched in zip(works, memory.bytes, strict=True):
        name = work.kernel.fn.__name__
        # A program of the backward has memory for the largest chunk, of which few pixels leave some.
        room = work.arguments[4] * 16 * SIZE * np.prod(work.grid) if "stage" in name else 0
        assert work.bytes - room < touched <= work.bytes if room else touched == work.bytes, name
