"""The embedded data set: circles, squares and triangles, drawn on first use, the same pixels every time.

It trains in a minute or two on a CPU without any download, and it is hard enough that the mAP grows epoch by epoch.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from kit.store import disk

NAMES = ("circle", "square", "triangle")
SIZE = 160  # pixels, width and height
SPLITS = {"train": 256, "val": 64}


def make(folder: Path, *, splits: dict[str, int] = SPLITS, size: int = SIZE, seed: int = 0) -> Path:
    """Draw the data set where it is not there yet.

    Args:
        folder: Where `images/`, `labels/` and `data.yaml` go.
        splits: Number of images per split.
        size: Width and height of an image, in pixels.
        seed: Another seed draws other images.

    Returns:
        The path of its `data.yaml`, which is written last: where it stands, the set is whole.

    Raises:
        StorageError: The folder cannot be written.
    """
    description = folder / "data.yaml"
    if description.exists():
        return description
    from PIL import Image, ImageDraw  # comes with torchvision

    for split, count in splits.items():
        images, labels = (disk.make_folder(folder / kind / split) for kind in ("images", "labels"))
        for number in range(count):
            generator = random.Random(f"{seed}/{split}/{number}")
            image = Image.new("RGB", (size, size), _colour(generator, 90))
            draw = ImageDraw.Draw(image)
            for _ in range(6):  # faint lines to look past
                ends = [generator.randrange(size) for _ in range(4)]
                draw.line(ends, fill=_colour(generator, 140), width=generator.randint(1, 3))
            lines = [_draw_shape(draw, generator, size) for _ in range(generator.randint(1, 4))]
            image.save(images / f"{number:04d}.png")
            (labels / f"{number:04d}.txt").write_text("\n".join(lines) + "\n")
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    text = "# Drawn by kit.data.shapes; 'path' is left out: the images lie beside this file.\n"
    text += "".join(f"{split}: images/{split}\n" for split in splits) + f"names:\n{names}"
    disk.publish(description, lambda file: file.write(text.encode()))
    return description


def _colour(generator: random.Random, brightest: int) -> tuple[int, int, int]:
    red, green, blue = (generator.randint(brightest - 90, brightest) for _ in range(3))
    return red, green, blue


def _draw_shape(draw: object, generator: random.Random, size: int) -> str:
    """Draw one shape and return its label line: class, then centre x, y, width and height as fractions."""
    kind = generator.randrange(len(NAMES))
    radius = generator.uniform(0.1, 0.22) * size
    x, y = (generator.uniform(radius, size - radius) for _ in range(2))
    corners, first = ((48, 0.0), (4, math.pi / 4), (3, -math.pi / 2))[kind]  # a circle is a polygon of 48 corners
    turns = [first + 2 * math.pi * corner / corners for corner in range(corners)]
    points = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    draw.polygon(points, fill=_colour(generator, 255))  # type: ignore[attr-defined]
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    top, bottom = min(p[1] for p in points), max(p[1] for p in points)
    box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return f"{kind} " + " ".join(f"{value / size:.6f}" for value in box)
