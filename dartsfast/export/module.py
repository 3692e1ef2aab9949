"""A network as a plain Python file that needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dartsfast.export import module_cnn, module_rnn
from dartsfast.export.formats import LOGITS
from dartsfast.export.source import Source
from dartsfast.export.text import listed, quoted, wrapped
from dartsfast.genotypes import CNN

WEIGHTS = ".weights.pt"  # the suffix of the file beside it
TRAINED = '''
def trained() -> Network:
    """Return the network with the weights that lie beside this file, for evaluation."""
    path = Path(__file__).with_suffix("{suffix}")
    network = Network({sizes})
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
'''


def module_text(source: Source) -> str:
    """Return the code of a file with a class ``Network`` whose parameters have the names of ``source``'s.

    Where that is trained, its function ``trained`` reads the weights beside the file.
    """
    text: Any = module_cnn if source.kind == CNN else module_rnn
    which = (source.images,) if source.kind == CNN else ()
    head, parts = [_docstring(source), text.IMPORTS], text.classes(source.genotype, *which)
    if source.trained:
        head[1] = text.IMPORTS_OF_TRAINED
        parts.append(TRAINED.format(suffix=WEIGHTS, sizes=_sizes(source)))
    if "mean" in source.about:
        head.append(_constants(source.about))
    return "\n\n\n".join(["\n".join(head).strip(), *(part.strip() for part in parts)]) + "\n"


def _sizes(source: Source) -> str:
    return ", ".join(map(str, source.sizes))


def _docstring(source: Source) -> str:
    network = f"{'Trained was' if source.trained else 'Build it as'} Network({_sizes(source)})."
    if source.kind == CNN:
        original = f"dartsfast.cnn.model.{LOGITS[source.images].__base__.__name__}"
        lacks = (
            "No paths are dropped in training, and there is no second classifier: of weights that have one "
            "leave out the names that begin with auxiliary_head."
        )
    else:
        original, lacks = "dartsfast.rnn.model.RNNModel", "There is no dropout."
    names = f"Parameters have the names and shapes of those of {original}."
    paragraphs = (wrapped(repr(source.genotype)), wrapped(f"{network} {names} {lacks}"))
    return (
        '"""The network of a cell in plain PyTorch, written by dartsfast.\n\n'
        + "\n\n".join(paragraphs)
        + '\n"""\n'
    )


def _constants(about: Mapping[str, Any]) -> str:
    return "\n".join(
        (
            "# Images are RGB from 0 to 1, less MEAN, over STD.",
            listed("MEAN", map(repr, about["mean"])),
            listed("STD", map(repr, about["std"])),
            listed("CLASSES", map(quoted, about["classes"])),
        )
    )


def load_module(text: bytes, source: Source) -> Callable[..., Any]:
    """Run the code of a file and return its network with the weights of ``source``'s."""
    namespace: dict[str, Any] = {"__name__": "exported"}
    exec(compile(text, "exported.py", "exec"), namespace)
    network: nn.Module = namespace["Network"](*source.sizes)
    network.load_state_dict(source.network.state_dict())
    return network.eval()


def weights_path(file: Path) -> Path:
    """Return where the weights of the module ``file`` lie."""
    return file.with_suffix(WEIGHTS)
