"""What a search network mixes its operations with; descendants of DARTS have their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.backends import check_storage, resolve_backend
from dartsfast.cnn.spaces import AnySpace
from dartsfast.modules.arch import ArchModule, initial_alphas
from dartsfast.ops import alpha_softmax


class Mixing(ArchModule):
    """Alphas of the kinds of cells that a space has, and what comes of them.

    Where all cells are of one kind there are no ``alphas_reduce``.
    """

    alphas_normal: Tensor
    alphas_reduce: Tensor
    cells: nn.ModuleList
    _space: AnySpace
    _backend: str
    _storage_dtype: torch.dtype | None
    _adjust: Callable[[Tensor, bool], Tensor] | None = None  # makes others of a kind's mixing weights

    def _initialize_alphas(self) -> None:
        """Draw the alphas; a subclass may set others, and :attr:`_arch_parameters` with them."""
        like = next(self.parameters())
        drawn = [initial_alphas(len(rows), len(rows[0])).to(like).requires_grad_() for rows in self._space]
        for name, alphas in zip(("alphas_normal", "alphas_reduce"), drawn, strict=False):
            setattr(self, name, alphas)
        self._arch_parameters = drawn

    @property
    def backend(self) -> str:
        """The backend that computes where the network lies now."""
        found = resolve_backend(self._backend, self.alphas_normal.device, dtype=self.alphas_normal.dtype)
        check_storage(self._storage_dtype, found)
        return found

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set what goes by the epoch, which counts from 0, of all ``epochs``: nothing here."""

    def logits(self, reduction: bool) -> Tensor:
        """Return [edges, ops] whose softmax is what the operations of a kind of cell weigh on average."""
        return self.alphas_reduce if reduction else self.alphas_normal

    def mixing_weights(self, kinds: Sequence[bool]) -> list[Tensor]:
        """Return what a pass mixes the cells with, [edges, ops] a kind: softmax(alpha) (equation 2).

        Only the ``kinds`` that there are, reduction or not: the alphas of others get no gradient, and Adam
        must not move them.
        """
        alphas = [self.logits(reduction) for reduction in kinds]
        if self.backend == "reference":
            return [F.softmax(a, dim=-1) for a in alphas]
        return alpha_softmax(alphas)

    def strengths(self, reduction: bool) -> Tensor:
        """Return [edges, ops] by which the genotype is read off."""
        rows = F.softmax(self.logits(reduction).detach(), dim=-1)
        return rows if self._adjust is None else self._adjust(rows, reduction)
