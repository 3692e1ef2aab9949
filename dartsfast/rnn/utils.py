"""Hidden states, batches of text, activations and dropouts of the RNN (the original's ``utils.py``)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartsfast.cnn.utils import create_exp_dir as create_exp_dir
from dartsfast.errors import InputError
from dartsfast.modules.plain import served

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


def repackage_hidden(h: Tensor | Sequence[Any]) -> Any:
    """Detach a hidden state, a tensor or a nest of them, from the graph that made it."""
    if isinstance(h, Tensor):
        return h.detach()
    return tuple(repackage_hidden(v) for v in h)


def batchify(data: Tensor, bsz: int, args: Any = None) -> Tensor:
    """Cut a token stream int64 [N] into ``bsz`` columns, [N // bsz, bsz]; the rest is dropped.

    ``args.cuda``, if there is one and it is true, moves the result to the GPU, as in the original.

    Raises:
        InputError: a batch size below 1, or fewer than two tokens a column.
    """
    if bsz < 1:
        raise InputError(f"batch size must be at least 1, got {bsz}")
    rows = data.numel() // bsz
    if rows < 2:
        most = data.numel() // 2
        smaller = f"a batch size of at most {most} or " if most else ""
        raise InputError(
            f"{data.numel()} tokens cannot fill {bsz} columns with at least two each: use {smaller}more text"
        )
    data = data[: rows * bsz].view(bsz, rows).t().contiguous()
    return data.cuda() if getattr(args, "cuda", False) else data


def get_batch(
    source: Tensor, i: int, args: Any, seq_len: int | None = None, evaluation: bool = False
) -> tuple[Tensor, Tensor]:
    """Return tokens [T, B] from row ``i`` on and the tokens after them.

    T is ``seq_len`` or ``args.bptt``, shorter at the end of ``source``. ``evaluation`` is kept for
    old scripts; wrap evaluation in ``torch.no_grad()``.
    """
    seq_len = min(seq_len or args.bptt, len(source) - 1 - i)
    return source[i : i + seq_len], source[i + 1 : i + 1 + seq_len]


def save_checkpoint(
    model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, path: str, finetune: bool = False
) -> None:
    """Write ``model.pt``, ``optimizer.pt`` (``finetune_*.pt`` if so) and ``misc.pt`` to the folder ``path``.

    As in the original, ``model.pt`` is the whole model: ``torch.load(..., weights_only=False)`` reads it,
    which runs code of whoever wrote the file. The others are a ``state_dict`` and the next epoch.
    """
    prefix = "finetune_" if finetune else ""
    torch.save(model, os.path.join(path, f"{prefix}model.pt"))
    torch.save(optimizer.state_dict(), os.path.join(path, f"{prefix}optimizer.pt"))
    torch.save({"epoch": epoch + 1}, os.path.join(path, "misc.pt"))


@torch.no_grad()
def text_loss(model: Any, source: Tensor, args: Any, between: Callable[[], None] = lambda: None) -> float:
    """Return the mean negative log-likelihood of a text after its first row; ``model`` is left in evaluation.

    The hidden state goes through the whole text, so ``args.bptt`` sets what is computed at once, not what
    is known.

    Args:
        model: a language model.
        source: tokens [rows, columns], as of :func:`batchify`, two rows or more.
        args: namespace with ``bptt``.
        between: called before every batch.
    """
    model.eval()
    hidden = model.init_hidden(source.size(1))
    total, rows = 0.0, 0
    for i in range(0, len(source) - 1, args.bptt):
        between()
        x, y = get_batch(source, i, args)
        loss, hidden = model._loss(hidden, x, y)
        total += loss.item() * len(x)
        rows += len(x)
    return total / rows


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def mask2d(B: int, D: int, keep_prob: float, cuda: bool = False, like: Tensor | None = None) -> Tensor:
    """Return a dropout mask [B, D] of 0 and 1 / keep_prob, with the dtype and device of ``like``.

    ``cuda`` moves it to the GPU, as in the original, where it is the default.
    """
    options: dict[str, Any] = {} if like is None else {"dtype": like.dtype, "device": like.device}
    # rand + keep_prob can round up to 2, which would double a weight.
    mask = torch.rand(B, D, **options).add_(keep_prob).floor_().clamp_(max=1).div_(keep_prob)
    return mask.cuda() if cuda else mask


def embedded_dropout(
    embed: nn.Embedding, words: Tensor, dropout: float = 0.1, scale: Tensor | None = None
) -> Tensor:
    """Look up ``words`` in ``embed`` with whole words dropped (Gal and Ghahramani, 2016).

    Returns [*words.shape, ninp]. ``scale`` multiplies the table [ntoken, 1].
    """
    weight = embed.weight
    if dropout:
        keep = 1 - dropout
        mask = weight.new_empty(weight.size(0), 1).bernoulli_(keep) / keep
        weight = mask * weight
    if scale is not None:
        weight = scale.expand_as(weight) * weight
    return F.embedding(words, weight, embed.padding_idx)


@served
class LockedDropout(nn.Module):
    """Dropout with one mask for all time steps (Gal and Ghahramani, 2016)."""

    def forward(self, x: Tensor, dropout: float = 0.5) -> Tensor:
        """Drop features of ``x`` [T, B, D] with probability ``dropout`` in training."""
        mask = self.mask(x, dropout)
        return x if mask is None else mask * x

    def mask(self, x: Tensor, dropout: float) -> Tensor | None:
        """Draw the factors [1, B, D] of ``x`` [T, B, D]; None where nothing is dropped."""
        if not self.training or not dropout:
            return None
        return x.new_empty(1, x.size(1), x.size(2)).bernoulli_(1 - dropout).div_(1 - dropout)
