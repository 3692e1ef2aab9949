"""The architecture step of the CNN search (paper section 2.3; the original's ``architect.py``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dartsfast import ranks
from dartsfast.bilevel import VirtualStep, alpha_gradient, flatten_
from dartsfast.bilevel.original import concat as _concat  # noqa: F401 - old scripts take it from here
from dartsfast.bilevel.original import refuse_steps_of_the_original
from dartsfast.cnn.accumulate import losses
from dartsfast.cnn.model_search import Network
from dartsfast.presets import resolve_preset


class Architect:
    """Adam over the alphas of a :class:`~dartsfast.cnn.model_search.Network`.

    Args:
        model: the search network.
        args: namespace with ``momentum`` and ``weight_decay`` (of the weights' SGD),
            ``arch_learning_rate`` and ``arch_weight_decay``; ``grad_clip`` is read by ``preset="paper"``.
        preset: ``code`` follows the published code to the letter, ``paper`` the paper
            (differences in ``docs/presets.md``).
        penalty: returns what the validation loss has beside, a function of the alphas, [].
        accumulate: parts of a batch that passes take one after the other, each with statistics of its own
            (``fit_to_part`` of the model needs no parts for as little memory).

    Where a ``torch.distributed`` process group is up, all processes take every step together, each with its
    own part of the batches, and the gradients in it are means over them: of the alphas (which are no
    parameters, so that ``DistributedDataParallel`` leaves them alone), of the virtual step, and of all passes
    of the product. So all have the same alphas, to the bit.

    Raises:
        InputError: unknown preset.
    """

    def __init__(
        self,
        model: Network,
        args: Any,
        *,
        preset: str = "code",
        penalty: Callable[[], Tensor | float] | None = None,
        accumulate: int = 1,
    ) -> None:
        self.network_momentum = args.momentum
        self.network_weight_decay = args.weight_decay
        self.preset = resolve_preset(preset)
        self.network_clip = getattr(args, "grad_clip", None) if self.preset.clips_cnn_virtual_step else None
        self.model = model
        self.penalty, self.accumulate = penalty, accumulate
        self.optimizer = torch.optim.Adam(
            model.arch_parameters(),
            lr=args.arch_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=args.arch_weight_decay,
        )

    def step(
        self,
        input_train: Tensor,
        target_train: Tensor,
        input_valid: Tensor,
        target_valid: Tensor,
        eta: float,
        network_optimizer: torch.optim.Optimizer,
        unrolled: bool,
    ) -> None:
        """Set the alphas' gradients and move them; weights and ``network_optimizer`` stay to the bit.

        Args:
            input_train: images [N, 3, H, W] of the weights' half of the data.
            target_train: labels [N], int64.
            input_valid: images of the alphas' half.
            target_valid: their labels.
            eta: learning rate xi of the virtual step, one number.
            network_optimizer: the weights' SGD, whose momentum the virtual step takes part in.
            unrolled: second order if true, first order (xi = 0) if false.

        Raises:
            InputError: a subclass overrides a step of the original's second order that there is not here, or
                ``eta`` is no number.
        """
        self.optimizer.zero_grad()
        if unrolled:
            self._backward_step_unrolled(
                input_train, target_train, input_valid, target_valid, eta, network_optimizer
            )
        else:
            self._backward_step(input_valid, target_valid)
        self.optimizer.step()

    def _backward_step(self, input_valid: Tensor, target_valid: Tensor) -> None:
        """Set the alphas' gradients of first order; what a subclass does instead is done."""
        valid = input_valid, target_valid
        self._set_gradients(valid, valid, None)  # the first order looks at no training loss

    def _backward_step_unrolled(
        self,
        input_train: Tensor,
        target_train: Tensor,
        input_valid: Tensor,
        target_valid: Tensor,
        eta: float,
        network_optimizer: torch.optim.Optimizer,
    ) -> None:
        """Set the alphas' gradients of second order; what a subclass does instead is done."""
        refuse_steps_of_the_original(self)
        weights = list(self.model.parameters())
        flatten_(weights)
        virtual = self._virtual_step(weights, eta, network_optimizer)
        self._set_gradients((input_train, target_train), (input_valid, target_valid), virtual)

    def _set_gradients(
        self, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], virtual: VirtualStep | None
    ) -> None:
        alphas = self.model.arch_parameters()

        first, *others = losses(self.model, *valid, self.accumulate)

        def with_penalty() -> Tensor:
            return first() if self.penalty is None else first() + self.penalty()

        gradients = alpha_gradient(
            list(self.model.parameters()),
            alphas,
            train_loss=losses(self.model, *train, self.accumulate),
            valid_loss=[with_penalty, *others],
            virtual=virtual,
            buffers=list(self.model.buffers()),
            average=ranks.averaging(),
        )
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient

    def _virtual_step(
        self, weights: Sequence[Tensor], eta: float, network_optimizer: torch.optim.Optimizer
    ) -> VirtualStep:
        # .get: looking up a weight without state would add an entry to the optimiser.
        buffers = [network_optimizer.state.get(w, {}).get("momentum_buffer") for w in weights]
        return VirtualStep(
            lr=eta,
            weight_decay=self.network_weight_decay,
            momentum=self.network_momentum,
            # As in the original: no momentum until every weight has a buffer.
            momentum_buffers=None if any(b is None for b in buffers) else buffers,
            max_norm=self.network_clip,
            clamp=self.preset.clamps_clip_coefficient,
            one_mask=self.preset.one_mask,
        )
