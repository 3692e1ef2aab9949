"""The architecture step of the RNN search (paper section 2.3; the original's ``architect.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dartsfast import ranks
from dartsfast.bilevel import VirtualStep, alpha_gradient, flatten_
from dartsfast.bilevel.original import clip as _clip  # noqa: F401 - old scripts take both from here
from dartsfast.bilevel.original import concat as _concat  # noqa: F401
from dartsfast.bilevel.original import refuse_steps_of_the_original
from dartsfast.presets import resolve_preset
from dartsfast.rnn.model_search import RNNModelSearch

_Text = tuple[list[Tensor], Tensor, Tensor]  # hidden states, tokens, the tokens after them


class Architect:
    """Adam over the alphas of a :class:`~dartsfast.rnn.model_search.RNNModelSearch`.

    Args:
        model: the search model.
        args: namespace with ``wdecay`` and ``clip`` (of the weights), ``arch_lr`` and ``arch_wdecay``.
        preset: ``code`` follows the published code to the letter, ``paper`` the paper
            (differences in ``docs/presets.md``).

    Where a ``torch.distributed`` process group is up, all processes take every step together, each with its
    own part of the batches, and the gradients in it are means over them: of the alphas (which are no
    parameters, so that ``DistributedDataParallel`` leaves them alone), of the virtual step, and of all passes
    of the product. So all have the same alphas, to the bit.

    Raises:
        InputError: unknown preset.
    """

    def __init__(self, model: RNNModelSearch, args: Any, *, preset: str = "code") -> None:
        self.network_weight_decay = args.wdecay
        self.network_clip = args.clip
        self.preset = resolve_preset(preset)
        self.model = model
        self.optimizer = torch.optim.Adam(
            model.arch_parameters(), lr=args.arch_lr, weight_decay=args.arch_wdecay
        )

    def step(
        self,
        hidden_train: list[Tensor],
        input_train: Tensor,
        target_train: Tensor,
        hidden_valid: list[Tensor],
        input_valid: Tensor,
        target_valid: Tensor,
        network_optimizer: torch.optim.Optimizer,
        unrolled: bool,
    ) -> tuple[list[Tensor], None]:
        """Set the alphas' gradients and move them; weights and ``network_optimizer`` stay to the bit.

        Args:
            hidden_train: hidden states [[1, B, nhid]] before ``input_train``, detached.
            input_train: tokens [T, B], int64, of the weights' half of the data.
            target_train: the tokens after them, [T, B] or [T * B].
            hidden_valid: hidden states before ``input_valid``.
            input_valid: tokens of the alphas' half.
            target_valid: the tokens after them.
            network_optimizer: the weights' optimiser, whose learning rate is that of the virtual step.
            unrolled: second order if true, first order (xi = 0) if false.

        Returns:
            The hidden states after ``input_valid``, and None (for the gradient norm of old scripts).

        Raises:
            InputError: a subclass overrides a step of the original's second order that there is not here.
        """
        self.optimizer.zero_grad()
        valid = hidden_valid, input_valid, target_valid
        if unrolled:
            train = hidden_train, input_train, target_train
            hidden = self._backward_step_unrolled(*train, *valid, network_optimizer.param_groups[0]["lr"])
        else:
            hidden = self._backward_step(*valid)
        self.optimizer.step()
        return [h.detach() for h in hidden], None

    def _backward_step(self, hidden: list[Tensor], input: Tensor, target: Tensor) -> list[Tensor]:
        """Set the alphas' gradients of first order; what a subclass does instead is done.

        Returns the hidden states after ``input``.
        """
        valid = hidden, input, target
        return self._set_gradients(valid, valid, None)  # the first order looks at no training loss

    def _backward_step_unrolled(
        self,
        hidden_train: list[Tensor],
        input_train: Tensor,
        target_train: Tensor,
        hidden_valid: list[Tensor],
        input_valid: Tensor,
        target_valid: Tensor,
        eta: float,
    ) -> list[Tensor]:
        """Set the alphas' gradients of second order; what a subclass does instead is done.

        Returns the hidden states after ``input_valid``.
        """
        refuse_steps_of_the_original(self)
        flatten_(list(self.model.parameters()))
        train = hidden_train, input_train, target_train
        return self._set_gradients(train, (hidden_valid, input_valid, target_valid), self._virtual_step(eta))

    def _set_gradients(self, train: _Text, valid: _Text, virtual: VirtualStep | None) -> list[Tensor]:
        hidden_next: list[Tensor] = []

        def valid_loss() -> Tensor:
            nonlocal hidden_next
            loss, hidden_next = self.model._loss(*valid)
            return loss

        alphas = self.model.arch_parameters()
        gradients = alpha_gradient(
            list(self.model.parameters()),
            alphas,
            train_loss=lambda: self.model._loss(*train)[0],
            valid_loss=valid_loss,
            virtual=virtual,
            buffers=list(self.model.buffers()),
            average=ranks.averaging(),
        )
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        return hidden_next

    def _virtual_step(self, lr: float) -> VirtualStep:
        # The original loads the moved weights through a state_dict that also holds the decoder's
        # weight, the same tensor as the embedding, at its old value: the embedding stays. So do alphas
        # that a script has made parameters: they are the cell's as well.
        staying = self.model.arch_parameters()
        if not self.preset.moves_tied_embedding:
            staying = [*staying, self.model.encoder.weight]
        still = frozenset(
            index for index, weight in enumerate(self.model.parameters()) if any(weight is t for t in staying)
        )
        return VirtualStep(
            lr=lr,
            weight_decay=self.network_weight_decay,
            max_norm=self.network_clip,
            clamp=self.preset.clamps_clip_coefficient,
            still=still,
            vector_max_norm=self.network_clip if self.preset.clips_validation_gradient else None,
            one_mask=self.preset.one_mask,
        )
