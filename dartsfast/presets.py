"""Two readings of the second-order step: the published code to the letter, or the paper."""

from __future__ import annotations

from dataclasses import dataclass

from dartsfast.errors import InputError


@dataclass(frozen=True)
class Preset:
    """Where the published code and the paper part; ``docs/presets.md`` explains each line.

    Attributes:
        moves_tied_embedding: the virtual step moves a weight that two layers share.
        clamps_clip_coefficient: the factor of the implicit gradient is min(1, clip / norm), the one
            that the gradient was scaled with; else clip / norm even where nothing was clipped.
        clips_cnn_virtual_step: the CNN's virtual step is clipped like its weight step.
        clips_validation_gradient: the RNN's validation gradient is clipped before it becomes the
            vector of the finite difference.
        one_mask: both finite-difference passes draw the same dropout masks.
    """

    moves_tied_embedding: bool
    clamps_clip_coefficient: bool
    clips_cnn_virtual_step: bool
    clips_validation_gradient: bool
    one_mask: bool


PRESETS = {
    "code": Preset(
        moves_tied_embedding=False,
        clamps_clip_coefficient=False,
        clips_cnn_virtual_step=False,
        clips_validation_gradient=True,
        one_mask=False,
    ),
    "paper": Preset(
        moves_tied_embedding=True,
        clamps_clip_coefficient=True,
        clips_cnn_virtual_step=True,
        clips_validation_gradient=False,
        one_mask=True,
    ),
}


def resolve_preset(name: str) -> Preset:
    """Return the preset ``name``, else raise InputError."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
