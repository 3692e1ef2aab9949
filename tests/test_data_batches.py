import threading

import numpy as np
import pytest
import torch

from dartsfast.data import Batches, TensorImages
from dartsfast.errors import InputError

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])


def random_images(n, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    return TensorImages(images, torch.arange(n) % 10)


def batches(source, batch_size=4, **changes):
    options = {"mean": MEAN, "std": STD, "seed": 3, "stream": "weights", "augment": True, **changes}
    return Batches(source, batch_size, **options)


def test_a_pass_shows_every_image_once_and_keeps_the_rest():
    stream = batches(random_images(10), 4, augment=False)
    assert len(stream) == 3
    parts = [stream.batch(0, i) for i in range(3)]
    assert [len(y) for _, y in parts] == [4, 4, 2]
    labels = torch.cat([y for _, y in parts])
    assert sorted(labels.tolist()) == list(range(10)) and labels.dtype == torch.int64
    again = torch.cat([stream.batch(1, i)[1] for i in range(3)])
    assert not torch.equal(labels, again)


def test_plain_batches_are_normalised_as_torchvision_does():
    source = random_images(5)
    stream = batches(source, 5, augment=False, shuffle=False)
    x, y = stream.batch(0, 0)
    expected = (source.images.float() / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    assert torch.equal(x, expected) and y.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cutout", [0, 9])
def test_prefetched_resumed_and_direct_batches_agree(cutout):
    source = random_images(11)
    direct = [batches(source, cutout_length=cutout).batch(2, i) for i in range(3)]
    stream = batches(source, cutout_length=cutout)
    list(stream.iterate(7))
    for start in range(4):
        got = list(stream.iterate(2, start))
        assert len(got) == 3 - start
        for (x, y), (x_direct, y_direct) in zip(got, direct[start:], strict=True):
            assert torch.equal(x, x_direct) and torch.equal(y, y_direct)
    assert stream.waited > 0


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_batches_of_one_process(shuffle):
    """Of 23 images three ranks leave two out where they shuffle."""
    source = random_images(23, 8)
    options = {"cutout_length": 5, "shuffle": shuffle}
    parts = [batches(source, 3, part=(rank, 3), **options) for rank in range(3)]
    whole = batches(source, 9, **options)
    assert [len(part) for part in parts] == [len(whole)] * 3 == [3] * 3
    assert parts[0].images == (21 if shuffle else 23)
    for index in range(3):
        shares = [part.batch(1, index) for part in parts]
        x, y = (torch.cat(both) for both in zip(*shares, strict=True))
        sizes = [len(share) for _, share in shares]
        assert sizes == [3, 3, 3] if index < 2 else [1, 1, 1] if shuffle else [1, 2, 2]
        if index < 2:
            assert torch.equal(x, whole.batch(1, index)[0])
        assert torch.equal(y, whole.batch(1, index)[1][: len(y)])
    (empty,) = batches(random_images(4, 8), 1, part=(0, 3), shuffle=False).iterate(0, 1)
    assert len(empty[1]) == 0 and empty[0].shape == (0, 3, 8, 8)


def test_streams_seeds_and_passes_differ():
    source = random_images(32)
    x = batches(source).batch(0, 0)[0]
    for other in (batches(source, seed=4), batches(source, stream="alphas")):
        assert not torch.equal(x, other.batch(0, 0)[0])
    assert torch.equal(x, batches(source, seed=np.int64(3)).batch(0, 0)[0])


def test_global_random_state_is_neither_read_nor_changed():
    stream = batches(random_images(9), cutout_length=8)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = [x for x, _ in stream.iterate(0)]
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, (x for x, _ in stream.iterate(0)), strict=True))


@pytest.mark.parametrize("side", [32, 15])
def test_augmented_images_are_shifted_or_mirrored_originals(side):
    source = random_images(100, side)
    stream = batches(source, 100, shuffle=False, mean=torch.zeros(3), std=torch.ones(3))
    pixels = stream.batch(0, 0)[0].mul(255).round().byte()
    padded = torch.nn.functional.pad(source.images, (4, 4, 4, 4))
    places = padded.unfold(2, side, 1).unfold(3, side, 1)  # [N, 3, 9, 9, side, side]
    seen = []
    for i, image in enumerate(pixels):
        flips = [(places[i] == view[:, None, None]).all(dim=(0, 3, 4)) for view in (image, image.flip(2))]
        seen.append(torch.stack(flips).nonzero()[0].tolist())  # fails where no place matches
    mirrored, top, left = torch.tensor(seen).T
    assert 25 < int(mirrored.sum()) < 75
    assert top.unique().tolist() == left.unique().tolist() == list(range(9))


@pytest.mark.parametrize("length", [1, 2, 7, 16, 100])
def test_cutout_zeroes_one_clipped_square(length):
    source = TensorImages(torch.full((300, 3, 32, 20), 255, dtype=torch.uint8), torch.zeros(300).long())
    options = {"mean": torch.full((3,), 2.0), "std": torch.ones(3)}
    x = batches(source, 300, cutout_length=length, **options).batch(0, 0)[0]
    hole = (x == 0).all(1)  # [N, H, W]; without a hole x is -1 or, in the padding, -2
    assert torch.equal(hole, (x == 0).any(1))
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert torch.equal(hole.sum((1, 2)), rows * columns)
    side = 2 * (length // 2)
    assert int(rows.max()) == min(side, 32) and int(columns.max()) == min(side, 20)
    assert length < 2 or int(rows.min()) < side  # clipped somewhere


@pytest.mark.parametrize(
    ("n", "size", "numbers"),
    [(5, 6, "6 does not fit the 5"), (5, 0, "0 does not fit the 5"), (0, 1, "the 0")],
)
def test_bad_batch_sizes(n, size, numbers):
    with pytest.raises(InputError, match=numbers):
        batches(random_images(n), size)


def test_other_bad_arguments():
    source = random_images(6)
    with pytest.raises(InputError, match="cutout_length -1"):
        batches(source, cutout_length=-1)
    with pytest.raises(InputError, match="cutout_length 4 with augment=False"):
        batches(source, augment=False, cutout_length=4)
    stream = batches(source)
    for pass_, index in ((0, 2), (0, -1), (-1, 0)):
        with pytest.raises(InputError, match=f"no batch {index} in pass {pass_}"):
            stream.batch(pass_, index)
    with pytest.raises(InputError, match="no batch 0 in pass -1"):
        next(iter(stream.iterate(-1)))


class Poisoned(TensorImages):
    """Raises once index 9 is gathered."""

    def gather(self, indices):
        if 9 in indices:
            raise InputError("cannot decode the image 9.png")
        return super().gather(indices)


def test_errors_reach_the_consumer_after_the_batches_before():
    source = random_images(12)
    stream = batches(Poisoned(source.images, source.targets), shuffle=False)
    seen = []
    with pytest.raises(InputError, match=r"9\.png"):
        for _, y in stream.iterate(0):
            seen.append(y.tolist())
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_loader_starts_no_thread_that_computes():
    """More OpenMP threads than cores would slow down every operation of the training loop."""
    before = threading.active_count()
    for _ in batches(random_images(40)).iterate(0):
        assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_stream_is_the_same_on_a_gpu():
    source = random_images(30)
    host, gpu = batches(source, cutout_length=8), batches(source, cutout_length=8, device="cuda")
    for (x, y), (x_gpu, y_gpu) in zip(host.iterate(1), gpu.iterate(1), strict=True):
        assert x_gpu.is_cuda and torch.equal(x, x_gpu.cpu()) and torch.equal(y, y_gpu.cpu())
