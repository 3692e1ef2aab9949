import hashlib
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from dartsfast.data import FolderImages, ImageTask, Subset, TensorImages, absolute_images, load_images
from dartsfast.data import photos as photos_module
from dartsfast.errors import InputError

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])


def random_images(n, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    return TensorImages(images, torch.arange(n) % 10)


# --- sources ---------------------------------------------------------------------------------------


def test_importing_the_package_loads_no_image_package():
    code = (
        "import sys, dartsfast.data; "
        "print([m for m in ('torchvision', 'skimage', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tensor_images_and_subset():
    source = random_images(7)
    part = Subset(source, torch.tensor([5, 1, 6]))
    assert len(part) == 3 and part.targets.tolist() == [5, 1, 6]
    assert torch.equal(part.gather(torch.tensor([2, 0])), source.images[[6, 5]])
    with pytest.raises(InputError, match="uint8"):
        TensorImages(source.images.float(), source.targets)
    with pytest.raises(InputError, match="7 images need targets"):
        TensorImages(source.images, source.targets[:6])


@pytest.mark.parametrize("bad", [-1, 10])
def test_task_refuses_poisoned_labels_and_flat_images(bad):
    good, poisoned = random_images(20), random_images(20)
    poisoned.targets[3] = bad
    classes = [str(c) for c in range(10)]
    ImageTask("t", classes, good, good, good, MEAN, STD)
    with pytest.raises(InputError, match=f"labels of the valid part.*{bad}.*need 0..9"):
        ImageTask("t", classes, good, poisoned, good, MEAN, STD)
    with pytest.raises(InputError, match="test part has no images"):
        ImageTask("t", classes, good, good, Subset(good, torch.arange(0)), MEAN, STD)
    with pytest.raises(InputError, match="deviations"):
        ImageTask("t", classes, good, good, good, MEAN, torch.tensor([0.1, 0.0, 0.1]))


# --- load_images: specs ----------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", "svhn:x", "cifar10", "cifar10:", "imagefolder", "photos:x", "photos:"])
def test_unknown_specs_list_the_known_ones(spec):
    with pytest.raises(InputError, match="use one of photos, cifar10:DIR"):
        load_images(spec)


def test_a_folder_that_there_is_not_is_named_as_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=rf"'~/none' \(there is no folder {tmp_path}/none\): use one of"):
        load_images("~/none")


@pytest.mark.parametrize("portion", [0.0, 1.0, -1.0, float("nan")])
def test_train_portion_must_lie_inside(portion):
    with pytest.raises(InputError, match="between 0 and 1"):
        load_images("photos", train_portion=portion)


def test_image_size_is_for_folders_only():
    with pytest.raises(InputError, match="got image_size 64"):
        load_images("photos", image_size=64)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_missing_torchvision_data_says_how_to_get_it(tmp_path, name):
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match=r"--download.*https://"):
        load_images(f"{name}:{tmp_path / 'absent'}")
    assert not (tmp_path / "absent").exists()


def test_download_is_asked_of_torchvision_and_its_failure_reported(monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    asked = []

    class Offline:
        url = "https://example.org/cifar.tar.gz"

        def __init__(self, root, train, download):
            asked.append((root, download))
            raise OSError("no connection")

    monkeypatch.setattr(datasets, "CIFAR100", Offline)
    for download in (False, True):
        with pytest.raises(InputError, match=r"no connection.*cifar\.tar\.gz"):
            load_images("cifar100:there", download=download)
    assert asked == [("there", False), ("there", True)]


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'dartsfast\[search\]'"):
        load_images("cifar10:x")


# --- load_images: torchvision's data sets ----------------------------------------------------------


def write_cifar10(root, monkeypatch, per_file=3):
    """Write a CIFAR-10 of five training files, and let torchvision expect its checksums."""
    datasets = pytest.importorskip("torchvision.datasets")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    rng = np.random.default_rng(0)

    def batch():
        pixels = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": rng.integers(0, 10, per_file).tolist()}

    names = [f"data_batch_{i}" for i in range(1, 6)]
    content = {name: batch() for name in [*names, "test_batch"]}
    sums = {name: write(name, value) for name, value in content.items()}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, sums[name]] for name in names])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    md5 = write("batches.meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5})
    return content


def test_cifar10_is_split_in_order(tmp_path, monkeypatch):
    content = write_cifar10(tmp_path, monkeypatch)
    task = load_images(f"cifar10:{tmp_path}", train_portion=0.5)
    assert (len(task.train), len(task.valid), len(task.test)) == (7, 8, 3)  # floor(0.5 * 15)
    pixels = np.concatenate([content[f"data_batch_{i}"]["data"] for i in range(1, 6)])
    whole = torch.cat([task.train.gather(torch.arange(7)), task.valid.gather(torch.arange(8))])
    assert torch.equal(whole, torch.from_numpy(pixels).view(15, 3, 32, 32))
    assert task.test.targets.tolist() == content["test_batch"]["labels"]
    assert task.classes[9] == "class 9" and task.mean[0] == torch.tensor(0.49139968)
    with pytest.raises(InputError, match="15 training images into 0 and 15"):
        load_images(f"cifar10:{tmp_path}", train_portion=0.05)


def test_damaged_cifar10_is_refused(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="corrupted"):
        load_images(f"cifar10:{tmp_path}")


def write_fashion(root, n=9, side=28, labels=None):
    pytest.importorskip("torchvision")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (n, side, side), dtype=np.uint8)
    labels = np.arange(n) % 10 if labels is None else np.array(labels)
    for part in ("train", "t10k"):
        head = struct.pack(">4i", 0x803, n, side, side)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">2i", 0x801, len(labels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())
    return pixels


def test_fashion_mnist_is_padded_and_repeated(tmp_path):
    pixels = write_fashion(tmp_path)
    task = load_images(f"fashion-mnist:{tmp_path}", train_portion=0.7)
    assert (len(task.train), len(task.valid), len(task.test)) == (6, 3, 9)
    images = task.test.gather(torch.arange(9))
    assert images.shape == (9, 3, 32, 32) and torch.equal(images[:, 0], images[:, 2])
    assert torch.equal(images[:, 1, 2:30, 2:30], torch.from_numpy(pixels))
    assert int(images[:, :, :2].sum()) == 0 and int(images[..., 30:].sum()) == 0
    train = task.train.gather(torch.arange(6)).double() / 255
    assert torch.allclose(task.mean.double(), train.mean((0, 2, 3)))
    assert torch.allclose(task.std.double(), train.std((0, 2, 3), correction=0))


def test_bad_fashion_mnist_is_refused(tmp_path):
    write_fashion(tmp_path, labels=[0, 1, 2, 3, 4, 5, 6, 7, 200])
    with pytest.raises(InputError, match="200"):
        load_images(f"fashion-mnist:{tmp_path}")
    write_fashion(tmp_path, labels=[0, 1])
    with pytest.raises(InputError, match="9 images need targets"):
        load_images(f"fashion-mnist:{tmp_path}")
    write_fashion(tmp_path, side=20)
    with pytest.raises(InputError, match="must be 28x28"):
        load_images(f"fashion-mnist:{tmp_path}")
    for content in (b"", b"\x00\x00\x08\x03", b"not an idx file at all"):
        (tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(InputError, match="cannot read fashion-mnist"):
            load_images(f"fashion-mnist:{tmp_path}")


# --- load_images: folders --------------------------------------------------------------------------


def write_folder(root, held_out="val", per_class=5):
    pil = pytest.importorskip("PIL.Image")
    for part, n in (("train", per_class), (held_out, 2)):
        for c, name in enumerate(("ant", "bee", "cow")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                # class c is the channel which is bright; sizes wider and taller than square
                pixels = np.zeros((20 + 7 * i, 50 - 6 * i, 3), np.uint8)
                pixels[..., c] = 100 + i
                pil.fromarray(pixels).save(folder / f"{i}.png")
            (folder / "notes.txt").write_text("no image")
    return root


@pytest.mark.parametrize("held_out", ["val", "valid", "test"])
def test_imagefolder_splits_within_each_class(tmp_path, held_out):
    write_folder(tmp_path, held_out)
    task = load_images(f"imagefolder:{tmp_path}", image_size=24)
    assert task.classes == ["ant", "bee", "cow"]
    assert task.train.targets.tolist() == [0, 0, 1, 1, 2, 2]  # floor(0.5 * 5) of each
    assert task.valid.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert task.test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    images = task.valid.gather(torch.tensor([8, 0, 4]))
    assert images.shape == (3, 3, 24, 24) and images.dtype == torch.uint8
    assert images.amax((2, 3)).tolist() == [[0, 0, 104], [102, 0, 0], [0, 103, 0]]


def test_folder_images_resize_then_crop_the_centre(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255  # the centre square alone is white
    pil.fromarray(pixels).save(tmp_path / "wide.png")
    source = FolderImages([tmp_path / "wide.png"], torch.tensor([0]), 10)
    assert int(source.gather(torch.tensor([0])).min()) == 255


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_images_are_named(tmp_path, suffix):
    write_folder(tmp_path)
    pil = pytest.importorskip("PIL.Image")
    path = tmp_path / "train" / "bee" / f"broken{suffix}"
    pil.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    damaged = [b"", b"text", whole[: len(whole) // 2], whole[:40] + bytes(60) + whole[100:-50]]
    for content in damaged:
        path.write_bytes(content)
        task = load_images(f"imagefolder:{tmp_path}")
        with pytest.raises(InputError, match=f"cannot decode.*broken{suffix}"):
            task.valid.gather(torch.arange(len(task.valid)))


def test_linked_folders_are_read_as_torchvision_does(tmp_path):
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    root = write_folder(tmp_path / "data")
    other = write_folder(tmp_path / "other") / "train" / "cow"
    train = root / "train"
    (train / "ant" / "more").symlink_to(other, target_is_directory=True)
    (train / "dog").symlink_to(other, target_is_directory=True)
    (train / "bee" / "9.png").symlink_to(other / "0.png")
    (train / "bee" / "folder.png").mkdir()
    expected = [(path, label) for path, label in folder(str(train)).samples]
    # Torchvision has no end on these two.
    (train / "ant" / "up").symlink_to(train / "ant", target_is_directory=True)
    (train / "bee" / "all").symlink_to(train / "bee", target_is_directory=True)
    task = load_images(f"imagefolder:{root}")
    source = task.train.source
    assert task.classes == ["ant", "bee", "cow", "dog"]
    found = list(zip(map(str, source.paths), source.targets.tolist(), strict=True))
    assert found == sorted(found, key=lambda sample: sample[1]) and sorted(found) == sorted(expected)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    root = write_folder(tmp_path)
    odd = root / "train" / "bee" / "odd.png"
    for make, kind in (
        (lambda: os.mkfifo(odd), "a FIFO"),
        (lambda: odd.symlink_to("/dev/zero"), "a device"),
        (lambda: odd.symlink_to(root / "nowhere"), "No such file"),
    ):
        make()
        with pytest.raises(InputError, match=rf"odd\.png.*{kind}"):
            load_images(f"imagefolder:{root}")
        with pytest.raises(InputError, match=rf"odd\.png.*{kind}"):
            FolderImages([odd], torch.tensor([0]), 2).gather(torch.tensor([0]))
        odd.unlink()


def test_bad_folders_say_what_the_layout_is(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*train.*DIR/train/CLASS"):
        load_images(f"imagefolder:{tmp_path}")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"no held-out folder.*DIR/train/CLASS"):
        load_images(f"imagefolder:{tmp_path}")
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match="no images in class folders"):
        load_images(f"imagefolder:{tmp_path}")
    root = write_folder(tmp_path / "b", per_class=1)
    with pytest.raises(InputError, match="class 'ant' has one training image, and needs two or more"):
        load_images(f"imagefolder:{root}")
    other = write_folder(tmp_path / "d", per_class=3)
    with pytest.raises(InputError, match="0.2 divides the 3 training images of class 'ant' into 0 and 3"):
        load_images(f"imagefolder:{other}", train_portion=0.2)
    (other / "train" / "bat").mkdir()
    with pytest.raises(InputError, match="class 'bat' has no training image, .*remove its folder"):
        load_images(f"imagefolder:{other}")
    (root / "val" / "yak").mkdir()
    with pytest.raises(InputError, match=r"without training images \(yak\)"):
        load_images(f"imagefolder:{root}")
    with pytest.raises(InputError, match="image_size must be at least 1, got 0"):
        load_images(f"imagefolder:{write_folder(tmp_path / 'c')}", image_size=0)


# --- photos ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos():
    for package in ("PIL", "skimage", "sklearn"):
        pytest.importorskip(package)
    return load_images("photos")


def test_photos_are_balanced_and_repeatable(photos):
    state = torch.random.get_rng_state()
    again = load_images("photos")
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(photos.classes) == 10 and len(photos.credit.splitlines()) == 10
    for part, n in (("train", 400), ("valid", 400), ("test", 200)):
        one, other = getattr(photos, part), getattr(again, part)
        assert one.targets.bincount().tolist() == [n] * 10
        assert torch.equal(one.images, other.images) and one.images.shape == (10 * n, 3, 32, 32)
    assert bool((photos.mean > 0.1).all()) and bool((photos.std > 0.1).all())


@pytest.mark.parametrize("portion", [0.2, 0.5, 0.63, 0.8])
@pytest.mark.parametrize("width", [451, 512, 1411])
def test_photo_strips_are_disjoint_and_complete(width, portion):
    strips = photos_module.column_strips(width, portion)
    assert [c for columns in strips.values() for c in columns] == list(range(width))
    assert min(map(len, strips.values())) >= max(photos_module.WINDOWS)


def test_photo_crops_show_columns_of_their_own_strip(photos, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    width, levels = 600, {"train": 10, "valid": 100, "test": 200}
    pixels = np.zeros((100, width, 3), np.uint8)
    for part, columns in photos_module.column_strips(width, 0.4).items():
        pixels[:, columns.start : columns.stop] = levels[part]
    monkeypatch.setattr(photos_module, "_open", lambda photo: image.fromarray(pixels))
    for part, (crops, _) in photos_module.load_crops(0.4).items():
        assert crops.unique().tolist() == [levels[part]]  # no pixel of a neighbour, not even by the filter


def test_photo_test_crops_do_not_depend_on_the_portion(photos):
    other = load_images("photos", train_portion=0.25)
    assert torch.equal(other.test.images, photos.test.images)
    assert (len(other.train), len(other.valid)) == (2000, 6000)
    with pytest.raises(InputError, match="nearer to 0.5"):
        load_images("photos", train_portion=0.1)


def test_a_folder_alone_is_what_it_holds(tmp_path):
    """Of the original's scripts one takes CIFAR-10's, the other ImageNet's."""
    pytest.importorskip("torchvision")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="cannot read cifar10 under .*--download"):
        load_images(str(tmp_path / "none"))
    root = write_folder(tmp_path / "images")
    assert load_images(str(root)).classes == ["ant", "bee", "cow"]
    assert absolute_images(str(root)) == f"imagefolder:{root}"
    assert absolute_images(str(tmp_path / "none")) == f"cifar10:{tmp_path / 'none'}"
