"""Word corpora for language models: a folder of text files, or the embedded ``pydoc``."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dartsfast.errors import InputError
from dartsfast.files import check_regular

PARTS = ("train", "valid", "test")
LAYOUTS = ("{}.txt", "ptb.{}.txt", "wiki.{}.tokens")

_TOKEN = re.compile(r"\w+|[^\w\s]")
_RARE = 3  # words of pydoc that occur less often in its training part become <unk>


class Dictionary:
    """Words and their ids, in order of first appearance, and how often each was added."""

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []
        self.counter: Counter[int] = Counter()
        self.total = 0

    def add_word(self, word: str) -> int:
        """Count ``word`` once more and return its id, a new one for a new word."""
        token_id = self.word2idx.setdefault(word, len(self.idx2word))
        if token_id == len(self.idx2word):
            self.idx2word.append(word)
        self.counter[token_id] += 1
        self.total += 1
        return token_id

    def __len__(self) -> int:
        return len(self.idx2word)


class Corpus:
    """The texts of a folder as ids: ``train``, ``valid`` and ``test``, int64 [tokens], and ``dictionary``.

    Each line is its words and ``<eos>``; the vocabulary covers the three files in that order. Raises
    InputError for a folder without the files of one layout and for a file which is empty or not UTF-8.
    """

    def __init__(self, path: str | Path) -> None:
        self.dictionary = Dictionary()
        self.train, self.valid, self.test = map(self.tokenize, corpus_files(path))

    def tokenize(self, path: str | Path) -> Tensor:
        """Return the ids, int64 [tokens], of a file and add its words to the dictionary."""
        return self._join(read_lines(path))

    def _join(self, lines: Iterable[str]) -> Tensor:
        ids = array("q")  # 8 bytes a token where a list takes several times that
        for line in line_ids(lines, self.dictionary):
            ids.extend(line)
        return torch.frombuffer(ids, dtype=torch.int64)


class PydocCorpus(Corpus):
    """The documentation of the Python language that the standard library ships, as a corpus.

    Lower-cased, punctuation apart from words, words seen less than three times in train as ``<unk>``.
    The text, and with it every score, depends on the version of Python.
    """

    def __init__(self) -> None:
        self.dictionary = Dictionary()
        self.train, self.valid, self.test = map(self._join, pydoc_lines())


def resolve_corpus(spec: str) -> Corpus:
    """Return the corpus that ``spec`` names: ``pydoc``, or a folder with one of the known layouts.

    The layouts are train.txt valid.txt test.txt, ptb.train.txt ..., wiki.train.tokens ... A folder called
    pydoc is reached as ``./pydoc``. Raises InputError as ``Corpus`` does.
    """
    return PydocCorpus() if spec == "pydoc" else Corpus(spec)


def absolute_text(spec: str) -> str:
    """Return ``spec`` with the folder that it names, if any, as an absolute path."""
    return spec if spec == "pydoc" else str(Path(os.path.expanduser(spec)).absolute())


def corpus_files(path: str | Path) -> list[Path]:
    """Return the train, valid and test files of a folder in one of the layouts, else InputError."""
    folder = Path(os.path.expanduser(path))
    for layout in LAYOUTS:
        files = [folder / layout.format(part) for part in PARTS]
        if all(file.exists() for file in files):
            return files
    accepted = "; ".join(" ".join(layout.format(part) for part in PARTS) for layout in LAYOUTS)
    problem = "lacks the files of a corpus" if folder.is_dir() else "is not a folder"
    raise InputError(f"text data {str(path)!r} {problem}: use pydoc, or a folder that holds {accepted}")


def read_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text, without byte order marks: files that were joined have several.

    Raises InputError for what is no regular file or cannot be read, for another encoding, and for a text
    without a word.
    """
    check_regular(path)
    empty = True
    try:
        with open(path, encoding="utf-8") as file:
            for marked in file:
                line = marked.lstrip("\ufeff")  # within a line it is a character like others
                if "\0" in line:
                    raise InputError(f"the text {path} holds NUL, as UTF-16 does: convert it to UTF-8")
                empty = empty and not line.strip()
                yield line
    except OSError as error:
        raise InputError(f"cannot read the text {path} ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the text {path} is not UTF-8 ({error}): convert it to UTF-8") from error
    if empty:
        raise InputError(f"the text {path} holds no word: put text in it")


def line_ids(lines: Iterable[str], dictionary: Dictionary) -> Iterator[list[int]]:
    """Yield for each line the ids of its words and of ``<eos>``, adding them to ``dictionary``."""
    for line in lines:
        yield [dictionary.add_word(word) for word in (*line.split(), "<eos>")]


def pydoc_lines() -> tuple[list[str], list[str], list[str]]:
    """Return the lines, tokens separated by spaces, of the train, valid and test parts of ``pydoc``.

    The unit is the paragraph, over all topics sorted by name: of every ten, eight are for train and one
    each for valid and test. Topics repeat each other's paragraphs, so only the first of equal ones
    counts: otherwise most of the test part would stand in train as well.
    """
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys(
        tuple(" ".join(_TOKEN.findall(line)) for line in paragraph.splitlines() if re.search(r"\w", line))
        for name in sorted(topics)
        for paragraph in re.split(r"\n\s*\n", topics[name].lower())
    )
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for number, lines in enumerate(paragraphs):
        parts[max(0, number % 10 - 7)].extend(lines)
    counts = Counter(word for line in parts[0] for word in line.split())

    def with_unk(line: str) -> str:
        return " ".join(word if counts[word] >= _RARE else "<unk>" for word in line.split())

    train, valid, test = ([with_unk(line) for line in part] for part in parts)
    return train, valid, test
