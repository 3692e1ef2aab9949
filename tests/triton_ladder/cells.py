"""Search cells whose grouped kernels are compiled, on memory that nothing touches."""

from dataclasses import dataclass
from unittest import mock

import torch

from dartsfast.cnn.genotypes import PRIMITIVES
from dartsfast.cnn.model_search import Cell
from dartsfast.fused import cell
from dartsfast.fused.forward import Setting


@dataclass(frozen=True)
class Cells:
    """A normal cell and one that reduces, of C channels, with all gradients.

    ``storage``: what images are kept as, None for what arithmetic has.
    """

    N: int
    size: int
    C: int
    memory: str = "store"
    storage: torch.dtype | None = None
    steps: int = 4
    primitives: tuple[str, ...] = tuple(PRIMITIVES)

    def launch(self, dtype):
        """Run forward and backward; what is computed is not looked at."""
        unchecked = mock.patch.dict("os.environ", DARTSFAST_SELFCHECK="0")
        with unchecked, mock.patch.object(Setting, "runner", "triton"):
            for reduction in (False, True):
                self._run(reduction, dtype)

    def _run(self, reduction, dtype):
        # Of the cell before last the image is larger where the last one reduced.
        sizes = self.steps, self.steps, 4 * self.C, 4 * self.C, self.C, reduction, False
        module = Cell(*sizes, backend="reference", primitives=self.primitives).to(dtype)
        shape = self.N, 4 * self.C, self.size, self.size
        images = [
            torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
            for _ in range(2)
        ]
        weights = torch.empty(len(module._ops), len(self.primitives), dtype=dtype, requires_grad=True)
        out = cell(module, images, weights, self.memory, self.storage)
        out.backward(torch.empty_like(out))
