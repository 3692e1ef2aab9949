"""A trained CNN as a program of ``torch.export``, and as ONNX; both take any number of images."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dartsfast.cnn.model import NetworkCIFAR, NetworkImageNet
from dartsfast.errors import InputError

EXTRA_FILE = "dartsfast.json"  # in an archive of torch.export
SAMPLE = 2  # images that a network is followed with; with one the batch would be taken for fixed

About = Mapping[str, Any]  # what the file says of the network; values that JSON has


class LogitsCIFAR(NetworkCIFAR):
    """The network of a cell, images to logits alone."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Map [N, 3, H, W] to [N, classes]."""
        return super().forward(images)[0]


class LogitsImageNet(NetworkImageNet):
    """The network of a cell for ImageNet, images to logits alone."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Map [N, 3, H, W] to [N, classes]."""
        return super().forward(images)[0]


Logits = LogitsCIFAR | LogitsImageNet
LOGITS: dict[str, Any] = {"cifar": LogitsCIFAR, "imagenet": LogitsImageNet}  # as --network names them


class Format(NamedTuple):
    """How a network becomes a file, and a file a network.

    Attributes:
        needs: packages, by their names in Python.
        content: maps the network, in evaluation mode, sides of its images and what is said of it to the file.
        load: maps a file to a function from images [N, 3, H, W] to logits [N, classes].
    """

    needs: tuple[str, ...]
    content: Callable[[Logits, int, About], bytes]
    load: Callable[[bytes], Callable[[Tensor], Tensor]]

    def check(self) -> None:
        """Raise InputError where a package is missing."""
        if missing := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            raise InputError(
                f"this format needs {' and '.join(missing)}, not installed here: "
                "pip install 'dartsfast[export]'"
            )


def _torch_content(network: Logits, side: int, about: About) -> bytes:
    buffer = io.BytesIO()
    program = torch.export.export(network, _sample(side), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, buffer, extra_files={EXTRA_FILE: json.dumps(about, indent=1)})
    return buffer.getvalue()


def _torch_load(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


def _onnx_content(network: Logits, side: int, about: About) -> bytes:
    program = torch.onnx.export(
        network, _sample(side), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
    )  # fmt: skip
    assert program is not None
    for name, value in about.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    return program.model_proto.SerializeToString()


def _onnx_load(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    evaluator = ReferenceEvaluator(model)

    def run(images: Tensor) -> Tensor:
        (logits,) = evaluator.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(np.array(logits))

    return run


def _sample(side: int) -> tuple[Tensor]:
    return (torch.zeros(SAMPLE, 3, side, side),)


PROGRAMS = {
    "torch": Format((), _torch_content, _torch_load),
    "onnx": Format(("onnx", "onnxscript"), _onnx_content, _onnx_load),
}
