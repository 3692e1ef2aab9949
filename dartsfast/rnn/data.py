"""The names of the original DARTS ``rnn/data.py``: Dictionary, Corpus, SentCorpus, BatchSentLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dartsfast.data.text import Corpus, Dictionary, corpus_files, line_ids, read_lines
from dartsfast.errors import InputError

__all__ = ["BatchSentLoader", "Corpus", "Dictionary", "SentCorpus"]


class SentCorpus:
    """The texts of a folder as sentences: lists of int64 [words + 1], one a line, and ``dictionary``.

    The files, vocabulary and errors are those of ``Corpus``.
    """

    def __init__(self, path: str | Path) -> None:
        self.dictionary = Dictionary()
        self.train, self.valid, self.test = map(self.tokenize, corpus_files(path))

    def tokenize(self, path: str | Path) -> list[Tensor]:
        """Return the sentences of a file, int64 [words + 1] each, and add its words to the dictionary."""
        return [torch.tensor(ids) for ids in line_ids(read_lines(path), self.dictionary)]


class BatchSentLoader:
    """Batches of sentences, shortest first, each int64 [longest, B], padded with ``pad_id`` at the end.

    ``volatile`` is accepted for old scripts and has no meaning any more. Raises InputError for a batch
    size below 1.
    """

    def __init__(
        self,
        sents: list[Tensor],
        batch_size: int,
        pad_id: int = 0,
        cuda: bool = False,
        volatile: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, got {batch_size}")
        self.sents = sents
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.cuda = cuda
        self.volatile = volatile
        self.sort_sents = sorted(sents, key=len)
        self.idx = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.idx = 0
        return self

    def __next__(self) -> Tensor:
        sents = self.sort_sents[self.idx : self.idx + self.batch_size]
        if not sents:
            raise StopIteration
        self.idx += len(sents)
        batch = pad_sequence(sents, padding_value=self.pad_id)
        return batch.cuda() if self.cuda else batch

    next = __next__
