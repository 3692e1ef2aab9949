import builtins
import itertools
import os

import pytest
import torch

from dartsfast.data.text import LAYOUTS, pydoc_lines, resolve_corpus
from dartsfast.errors import InputError
from dartsfast.rnn.data import BatchSentLoader, Corpus, Dictionary, SentCorpus

TEXTS = {"train": "the cat sat\n\nthe dog\n", "valid": "a cat\n", "test": "the end"}


def write(folder, layout="{}.txt", **changes):
    folder.mkdir(exist_ok=True)
    for part, text in {**TEXTS, **changes}.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / layout.format(part)).write_bytes(data)
    return folder


def test_dictionary_counts_words_in_order_of_appearance():
    dictionary = Dictionary()
    assert [dictionary.add_word(word) for word in ("b", "a", "b")] == [0, 1, 0]
    assert dictionary.idx2word == ["b", "a"] and dictionary.word2idx == {"b": 0, "a": 1}
    assert dictionary.counter == {0: 2, 1: 1} and dictionary.total == 3 and len(dictionary) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_corpus_reads_each_layout(tmp_path, layout):
    corpus = resolve_corpus(str(write(tmp_path / "text", layout)))
    words = corpus.dictionary.idx2word
    assert words == ["the", "cat", "sat", "<eos>", "dog", "a", "end"]
    assert corpus.train.dtype == torch.int64 and corpus.train.tolist() == [0, 1, 2, 3, 3, 0, 4, 3]
    assert corpus.valid.tolist() == [5, 1, 3] and corpus.test.tolist() == [0, 6, 3]
    assert corpus.dictionary.total == 14


def test_corpus_matches_a_plain_two_pass_tokenizer(tmp_path):
    lines = [" ".join(f"w{i * j % 37}" for j in range(i % 9)) + "\n" for i in range(200)]
    corpus = Corpus(write(tmp_path / "text", train="".join(lines)))
    tokens = list(itertools.chain.from_iterable([*line.split(), "<eos>"] for line in lines))
    ids = {word: i for i, word in enumerate(dict.fromkeys(tokens))}
    assert corpus.train.tolist() == [ids[token] for token in tokens]


def test_missing_folder_and_missing_file_name_the_layouts(tmp_path):
    with pytest.raises(InputError, match=r"is not a folder.*ptb\.train\.txt.*wiki\.train\.tokens"):
        resolve_corpus(str(tmp_path / "absent"))
    folder = write(tmp_path / "text")
    (folder / "valid.txt").unlink()
    with pytest.raises(InputError, match=r"lacks the files.*valid\.txt"):
        Corpus(folder)
    with pytest.raises(InputError, match="'~nobody-of-this-name/x' is not a folder"):
        resolve_corpus("~nobody-of-this-name/x")
    with pytest.raises(InputError, match=r"cannot read.*valid\.txt"):
        Corpus(write(tmp_path / "other")).tokenize(folder / "valid.txt")


@pytest.mark.parametrize("kind", [Corpus, SentCorpus])
def test_empty_and_non_utf8_files_are_named(tmp_path, kind):
    for text in ("", "\n \n"):
        with pytest.raises(InputError, match=r"test\.txt holds no word"):
            kind(write(tmp_path / "text", test=text))
    with pytest.raises(InputError, match=r"valid\.txt is not UTF-8"):
        kind(write(tmp_path / "text", valid=b"caf\xe9 au lait\n"))


@pytest.mark.parametrize("kind", [Corpus, SentCorpus])
def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path, kind):
    plain = kind(write(tmp_path / "plain"))
    marked = kind(
        write(tmp_path / "text", **{part: b"\xef\xbb\xbf" + t.encode() for part, t in TEXTS.items()})
    )
    assert marked.dictionary.idx2word == plain.dictionary.idx2word


@pytest.mark.parametrize("kind", [Corpus, SentCorpus])
def test_files_that_were_joined_bring_their_byte_order_marks(tmp_path, kind):
    plain, text = TEXTS["train"] * 2, ("\ufeff" + TEXTS["train"]) * 2
    joined = kind(write(tmp_path / "joined", train="\ufeff" + text))
    plain = kind(write(tmp_path / "plain", train=plain))
    assert joined.dictionary.idx2word == plain.dictionary.idx2word
    assert [t.tolist() for t in joined.train] == [t.tolist() for t in plain.train]
    inside = kind(write(tmp_path / "inside", train="a\ufeffb \ufeffc\n"))  # within a line: as written
    assert inside.dictionary.idx2word[:2] == ["a\ufeffb", "\ufeffc"]
    with pytest.raises(InputError, match=r"test\.txt holds no word"):
        kind(write(tmp_path / "empty", test="\ufeff\n\ufeff"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_unicode_encodings_are_refused(tmp_path, encoding):
    with pytest.raises(InputError, match=r"valid\.txt .*convert it to UTF-8"):
        Corpus(write(tmp_path / "text", valid=TEXTS["valid"].encode(encoding)))


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    path = write(tmp_path / "text") / "valid.txt"
    for make, kind in (
        (lambda: os.mkfifo(path), "a FIFO"),
        (lambda: path.symlink_to("/dev/zero"), "a device"),
        (lambda: path.symlink_to(tmp_path), "a folder"),
    ):
        path.unlink()
        make()
        with pytest.raises(InputError, match=rf"valid\.txt is {kind}"):
            Corpus(tmp_path / "text")


def test_pydoc_is_deterministic_moderate_and_split():
    first, second = resolve_corpus("pydoc"), resolve_corpus("pydoc")
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(first, part), getattr(second, part))
    total = len(first.train) + len(first.valid) + len(first.test)
    assert 0.75 < len(first.train) / total < 0.85 and total > 30_000
    assert len(first.valid) > 0.07 * total and len(first.test) > 0.07 * total
    size = len(first.dictionary)
    assert 500 < size < 5000 and "<unk>" in first.dictionary.word2idx
    # every word but <unk> comes from train, three times or more
    counts = first.train.bincount(minlength=size)
    counts[first.dictionary.word2idx["<unk>"]] = 3
    assert int(counts.min()) >= 3


def test_pydoc_holds_little_of_its_test_part_in_train():
    train, _, test = pydoc_lines()
    long = [line for line in test if len(line.split()) > 5]
    known = set(train)
    assert sum(line in known for line in long) < 0.1 * len(long)  # recurring phrases only


def test_text_needs_no_image_package(monkeypatch):
    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert name.split(".")[0] not in ("torchvision", "skimage", "sklearn", "PIL")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    resolve_corpus("pydoc")


def test_sentences_and_their_padded_batches(tmp_path):
    corpus = SentCorpus(write(tmp_path / "text"))
    assert [s.tolist() for s in corpus.train] == [[0, 1, 2, 3], [3], [0, 4, 3]]
    loader = BatchSentLoader(corpus.train, 2, pad_id=9)
    for _ in range(2):  # starts over with each iter()
        batches = [batch.tolist() for batch in loader]
        assert batches == [[[3, 0], [9, 4], [9, 3]], [[0], [1], [2], [3]]]
    with pytest.raises(InputError, match="at least 1, got 0"):
        BatchSentLoader(corpus.train, 0)
