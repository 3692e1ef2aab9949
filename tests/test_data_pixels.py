"""How the pixels of image files are read."""

import os

import numpy as np
import pytest
import torch

from dartsfast.data import FolderImages
from dartsfast.errors import InputError


def decoded(path, side):
    """Return the one image as [side, side, 3]."""
    return FolderImages([path], torch.tensor([0]), side).gather(torch.tensor([0]))[0].permute(1, 2, 0)


RAMP = np.array([[0, 255], [256, 65535]], np.uint16)  # high bytes 0, 0, 1, 255


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_cut_to_their_high_bytes(tmp_path, suffix):
    pil = pytest.importorskip("PIL.Image")
    path = tmp_path / f"a.{suffix}"
    pil.fromarray(RAMP).save(path)
    assert decoded(path, 2).tolist() == [[[0] * 3, [0] * 3], [[1] * 3, [255] * 3]]


def test_sixteen_bits_a_colour_and_big_endian_are_read_alike(tmp_path):
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 1 1 65535\n" + np.array([65535, 32768, 0], ">u2").tobytes())
    assert decoded(path, 1).tolist() == [[[255, 128, 0]]]
    pil = pytest.importorskip("PIL.Image")
    pil.frombytes("I;16B", (2, 2), RAMP.astype(">u2").tobytes()).save(tmp_path / "b.tif")
    assert decoded(tmp_path / "b.tif", 2)[..., 0].tolist() == [[0, 0], [1, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(tmp_path, dtype):
    pil = pytest.importorskip("PIL.Image")
    pil.fromarray(np.eye(4, dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif .*no known range: save it with 8 or 16 bits"):
        decoded(tmp_path / "a.tif", 4)


@pytest.mark.parametrize(
    ("mode", "pixel", "suffix", "expected"),
    [
        ("1", 1, "png", [255, 255, 255]),
        ("L", 77, "png", [77, 77, 77]),
        ("LA", (77, 0), "png", [77, 77, 77]),
        ("RGBA", (10, 20, 30, 0), "png", [10, 20, 30]),
        ("CMYK", (255, 0, 255, 0), "tif", [0, 255, 0]),
    ],
)
def test_other_modes_are_read_by_their_colours(tmp_path, mode, pixel, suffix, expected):
    pil = pytest.importorskip("PIL.Image")
    pil.new(mode, (2, 2), pixel).save(tmp_path / f"a.{suffix}")
    assert decoded(tmp_path / f"a.{suffix}", 2)[0, 0].tolist() == expected


@pytest.mark.filterwarnings("error")
def test_palettes_with_transparency_and_moving_pictures(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    palette = pil.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "p.png", transparency=b"\xff\x00")
    assert decoded(tmp_path / "p.png", 2)[0, 0].tolist() == [9, 8, 7]
    frames = [pil.new("RGB", (2, 2), color) for color in ("#010203", "#ffffff")]
    for suffix in ("png", "gif"):  # the first frame; a .gif by the name of a .png
        frames[0].save(tmp_path / f"m.{suffix}", save_all=True, append_images=frames[1:])
        os.replace(tmp_path / f"m.{suffix}", tmp_path / "m.png")
        assert decoded(tmp_path / "m.png", 2)[0, 0].tolist() == [1, 2, 3]


def test_decompression_bombs_are_named(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    pil.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"cannot decode.*bomb\.png.*bomb"):
        decoded(tmp_path / "bomb.png", 2)
