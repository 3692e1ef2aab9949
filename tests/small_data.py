"""Small real folders of the layouts that searches read."""

import numpy as np
import pytest


def image_folder(root, classes=3, train=6, held_out=2, side=8):
    """ImageNet layout with ``train`` images a class; class k is brighter in channel k."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", held_out)):
        for k in range(classes):
            folder = root / part / f"class{k}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (side + i % 3, side, 3), dtype=np.uint8)
                pixels[..., k % 3] += 130
                image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def text_folder(root, pattern="{}.txt", words=12, lines=60):
    """A language of ``words`` words in which every word has one successor but for a little noise."""
    rng = np.random.default_rng(1)
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", lines), ("valid", lines // 2), ("test", lines // 2)):
        text = []
        for _ in range(count):
            word = int(rng.integers(words))
            line = []
            for _ in range(9):
                line.append(f"w{word}")
                word = (5 * word + 1) % words if rng.random() < 0.9 else int(rng.integers(words))
            text.append(" ".join(line))
        (root / pattern.format(part)).write_text("\n".join(text) + "\n")
    return root
