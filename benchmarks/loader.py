"""Images per second of the training loader, the kit's over Ultralytics', side by side: `make bench`.

Drawn JPEGs of three sizes, default augmentation at 640 pixels, two workers; the two take turns, epoch by epoch, so that
a busy machine slows both. There are many more images than stock's workers keep decoded, as in any real data set.
The first epoch (nothing decoded yet) and the later ones (medians) are told apart, and the
whole is repeated without room for the cache of all images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kit.yolo import environment

PREFETCHED_S = 2.5
DATA = {"names": {0: "a", 1: "b", 2: "c"}, "nc": 3, "channels": 3}


def draw(folder: Path, count: int, width: int, height: int) -> None:
    """Draw photographs, more or less: smooth colours under noise, so that they compress as photographs do."""
    import cv2
    import numpy

    generator = numpy.random.default_rng(width)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        coarse = generator.integers(0, 255, (height // 16, width // 16, 3), dtype=numpy.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image = numpy.clip(smooth + generator.normal(0, 6, smooth.shape), 0, 255).astype(numpy.uint8)
        cv2.imwrite(str(folder / "images" / f"{number:04d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        lines = [f"{number % 3} {x:.3f} {y:.3f} 0.2 0.2" for x, y in generator.uniform(0.2, 0.8, (6, 2))]
        (folder / "labels" / f"{number:04d}.txt").write_text("\n".join(lines))


def stock_loader(folder: Path, workers: int) -> Any:
    """Build Ultralytics' own."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader, build_yolo_dataset

    dataset = build_yolo_dataset(get_cfg(), str(folder / "images"), 16, DATA, mode="train")
    return build_dataloader(dataset, 16, workers, device="cpu")


def kit_loader(folder: Path, workers: int, epochs: int) -> Any:
    """Build the kit's, from the same pieces as the trainer."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader

    from kit.run.order import EpochOrder
    from kit.yolo.samples import LabelledDataset

    hyp = get_cfg()
    dataset = LabelledDataset(
        img_path=str(folder / "images"), imgsz=640, batch_size=16, augment=True, hyp=hyp, data=DATA, task="detect"
    )
    loader = build_dataloader(dataset, 16, workers, device="cpu")
    dataset.order, dataset.hyp = EpochOrder(len(dataset), 16, epochs, 0), hyp
    dataset.share_images(workers)
    object.__setattr__(loader, "batch_sampler", dataset.order)
    return loader


def rate(loader: Any, ready: int) -> float:
    """Return the images per second of one epoch, from the batch on that was not made before it began.

    Afterwards the workers get the time to make what they prefetch of the next epoch, so as not to slow whose turn
    comes next.
    """
    images, began = 0, time.perf_counter()
    for number, batch in enumerate(loader, 1):
        if number == ready:
            images, began = 0, time.perf_counter()
        else:
            images += len(batch["img"])
    found = images / (time.perf_counter() - began)
    time.sleep(PREFETCHED_S)
    return found


def touch(size: int) -> None:
    """Touch memory once: what a virtual machine's host has taken back costs ten times as much to get as to use."""
    import numpy

    numpy.ones(size, numpy.uint8)


def compare(folder: Path, epochs: int, workers: int) -> tuple[float, float]:
    """Return the kit's rate over stock's, in the first epoch and, as a median, in the later ones."""
    touch(2 << 30)
    loaders = {"stock": stock_loader(folder, workers), "kit": kit_loader(folder, workers, epochs)}
    ratios = []
    for epoch in range(epochs):
        ready = loaders["kit"].prefetch_factor * workers if epoch else 0
        rates = {name: rate(loaders[name], ready) for name in sorted(loaders, reverse=epoch % 2 == 1)}  # taking turns
        ratios.append(rates["kit"] / rates["stock"])
    for loader in loaders.values():
        loader.close()
    return ratios[0], statistics.median(ratios[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sizes", default="640x480,1280x720,1920x1080")
    options = parser.parse_args()
    environment.prepare()
    print(f"images/s, kit over stock, {options.workers} workers, medians of {options.repeats} repeats")
    print("| JPEGs | first epoch | later | no room: first | no room: later |\n|---|---|---|---|---|")
    from kit.data import images

    share = images.SHARE
    with tempfile.TemporaryDirectory() as folder:
        for width, height in (map(int, size.split("x")) for size in options.sizes.split(",")):
            place = Path(folder) / f"{width}"
            draw(place, options.images, width, height)
            columns = []
            for images.SHARE in (share, 0.0):
                ratios = []
                for repeat in range(options.repeats):
                    os.environ["KIT_SCRATCH"] = f"{folder}/{width}-{images.SHARE}-{repeat}"  # cold each time
                    ratios.append(compare(place, options.epochs, options.workers))
                columns += [statistics.median(values) for values in zip(*ratios, strict=True)]
            print(f"| {width}x{height} | " + " | ".join(f"{value:.2f}" for value in columns) + " |", flush=True)


if __name__ == "__main__":
    main()
