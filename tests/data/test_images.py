"""The cache of decoded images is only a cache, and the lazy mosaic draws the same pixels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import YOLODataset

from kit.data import images
from kit.data.images import ImageCache, cache_for
from kit.kaggle import machine, session
from kit.run import order as randomness
from kit.run.order import EpochOrder, Sample
from kit.yolo.samples import LabelledDataset
from tests.help import training

DATA = {"names": {0: "circle", 1: "square", 2: "triangle"}, "nc": 3, "channels": 3}


def arguments(folder: Path, task: str = "detect", **hyp: Any) -> dict[str, Any]:
    values = get_cfg(overrides={"task": task, **hyp})
    values.augmentations = hyp.get("augmentations", [])  # Albumentations': seeded in another way, see below
    data = {**DATA, "kpt_shape": [3, 3], "flip_idx": [1, 0, 2]} if task == "pose" else DATA
    return {
        "img_path": str(folder / "images/train"),
        "imgsz": 96,
        "batch_size": 4,
        "augment": True,
        "hyp": values,
        "data": data,
        "task": task,
    }


def samples(folder: Path, task: str = "detect", shared: bool = True, **hyp: Any) -> LabelledDataset:
    """Build the kit's data set over 12 drawn images."""
    dataset = LabelledDataset(**arguments(folder, task, **hyp))
    dataset.order = EpochOrder(len(dataset), 4, 3, seed=5)
    if shared:
        dataset.share_images(workers=2)
    else:
        dataset.cache = "ram"  # nothing is kept anywhere
    return dataset


def make(dataset: Any, epochs: int = 2) -> list[dict[str, Any]]:
    return [dataset[Sample(epoch, position)] for epoch in range(epochs) for position in range(len(dataset))]


def assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert set(a) == set(b)
        for name, value in a.items():
            assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


@pytest.fixture
def drawn(place: Path) -> Path:
    training.settings(place)
    return place / "shapes-detect"


HYPS = [{}, {"mosaic": 0.5, "degrees": 20.0, "shear": 5.0, "scale": 0.9}, {"mixup": 0.5, "cutmix": 0.5}]


@pytest.mark.parametrize("hyp", [*HYPS, {"perspective": 0.0005}])
def test_lazy_mosaic_draws_ultralytics_pixels(drawn: Path, hyp: dict[str, Any]) -> None:
    """With the same partners and the same generators, each sample is the one that Ultralytics' classes make."""
    dataset = samples(drawn, **hyp)
    stock = YOLODataset(**arguments(drawn, **hyp))
    stock.cache = "ram"  # it adds nothing to the buffer then, and draws from it all the same
    for sample in [Sample(epoch, position) for epoch in range(3) for position in range(len(dataset))]:
        own = dataset[sample]
        stock.buffer = list(dataset.buffer)
        randomness.seed_all(randomness.mix("sample", 5, *sample))
        assert_same([own], [stock[dataset.order.permutation(sample.epoch)[sample.position]]])


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_lazy_mosaic_keeps_the_labels_of_every_task(place: Path, task: str) -> None:
    """Masks, keypoints and rotated boxes, with and without copy-paste looking at the canvas in between."""
    training.settings(place, task)
    for copy_paste in (0.0, 0.6):
        dataset = samples(place / f"shapes-{task}", task, copy_paste=copy_paste)
        stock = YOLODataset(**arguments(place / f"shapes-{task}", task, copy_paste=copy_paste))
        stock.cache = "ram"
        for position in range(len(dataset)):
            own = dataset[Sample(0, position)]
            stock.buffer = list(dataset.buffer)
            randomness.seed_all(randomness.mix("sample", 5, 0, position))
            assert_same([own], [stock[dataset.order.permutation(0)[position]]])


def test_same_bits_with_and_without_the_cache(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold, warm, half full, in a ring of two slots, deleted in mid-run, and without any."""
    without = make(samples(drawn, shared=False, mixup=0.3))
    dataset = samples(drawn, mixup=0.3)
    assert dataset._all
    assert_same(make(dataset), without)  # cold, then filled
    assert dataset.images is not None
    assert (dataset.images._heads[:, 0] != 0).all()
    assert_same(make(samples(drawn, mixup=0.3)), without)  # warm: the file of the run before
    again = samples(drawn, mixup=0.3)
    assert again.images is not None
    again.images._heads[::2, 0] = 0
    assert_same(make(again), without)  # half full
    for file in (session.scratch() / "images").iterdir():
        file.unlink()
    assert_same(make(again), without)  # deleted in mid-run
    monkeypatch.setattr(images, "SHARE", 0.0)
    ring = samples(drawn, mixup=0.3)
    assert not ring._all
    assert_same(make(ring), without)
    memory, _ = machine.memory()
    assert ring.images is not None
    assert not ring.images._contested
    monkeypatch.setattr(images, "RING_SHARE", 2.5 * ring.images.slot_bytes / memory)
    tiny = samples(drawn, mixup=0.3)
    assert tiny.images is not None
    assert tiny.images.slots == 2
    assert tiny.images._contested
    assert_same(make(tiny), without)
    monkeypatch.setattr(images, "RING_SHARE", 0.0)
    nothing = samples(drawn, mixup=0.3)
    assert nothing.images is None
    assert_same(make(nothing), without)


def test_warm_cache_spares_the_decoding(drawn: Path) -> None:
    """After one epoch the image files are not read again."""
    dataset = samples(drawn)
    expected = make(dataset)
    for file in (drawn / "images/train").glob("*.png"):
        file.write_bytes(b"")
    assert_same(make(dataset), expected)


def test_full_disk_leaves_the_bits_as_they_are(place: Path) -> None:
    """A file system that fills up in mid-epoch costs speed; the process goes on (in a real small tmpfs)."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    small = place / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("no tmpfs here")
    try:
        cache = ImageCache(8, 96 * 96 * 3, small / "a.images")
        (small / "filler").write_bytes(bytes(300_000))
        loaded = [(numpy.full((96, 96, 3), n, numpy.uint8), (96, 96), (96, 96)) for n in range(8)]
        for number, image in enumerate(loaded):
            cache.put(number, number, image)
        kept = [cache.get(number, number) for number in range(8)]
        assert None in kept, "the disk must have filled up"
        assert any(kept)
        for number, found in enumerate(kept):
            assert found is None or (found[0] == number).all()
        del cache, kept, found
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_processes_share_one_cache(drawn: Path) -> None:
    """What a forked process keeps, its parent finds, in a file and in a ring."""
    for path in (drawn / "a.images", None):
        cache = ImageCache(4, 300, path)
        child = os.fork()
        if not child:
            cache.put(1, 7, (numpy.full((10, 10, 3), 9, numpy.uint8), (20, 20), (10, 10)))
            os._exit(0)
        os.waitpid(child, 0)
        found = cache.get(1, 7)
        assert found is not None
        assert (found[0] == 9).all()
        assert found[1:] == ((20, 20), (10, 10))
        assert cache.get(1, 3) is None
        with pytest.raises(ValueError, match="read-only"):
            found[0][0] = 1


def test_writers_and_readers_of_a_ring_never_mix_images() -> None:
    """Four processes fight over one slot: whoever finds an item finds all of it."""
    code = (
        "import os, numpy\n"
        "from kit.data.images import ImageCache\n"
        "cache = ImageCache(1, 300 * 300 * 3, contested=True)\n"
        "children = []\n"
        "for me in range(4):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        bad = 0\n"
        "        for turn in range(400):\n"
        "            item = (turn + me) % 5\n"
        "            found = cache.get(0, item)\n"
        "            if found is None:\n"
        "                cache.put(0, item, (numpy.full((300, 300, 3), item, numpy.uint8), (1, 1), (300, 300)))\n"
        "            else:\n"
        "                bad += not (found[0] == item).all()\n"
        "        os._exit(1 if bad else 0)\n"
        "    children.append(child)\n"
        "assert all(os.waitpid(child, 0)[1] == 0 for child in children)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(session.REPOSITORY)})


def test_other_files_get_another_cache_and_the_old_one_goes(drawn: Path) -> None:
    """A changed image makes a new file; scratch holds one at a time."""
    files = sorted(map(str, (drawn / "images/train").glob("*.png")))
    first, _ = cache_for(files, 100, 8, "a")
    names = [file.name for file in (session.scratch() / "images").iterdir()]
    os.utime(files[0], ns=(1, 1))
    second, _ = cache_for(files, 100, 8, "a")
    assert first is not None
    assert second is not None
    assert names != [file.name for file in (session.scratch() / "images").iterdir()]
    assert len(list((session.scratch() / "images").iterdir())) == 1


def test_decoded_images_beside_the_data_are_not_read(drawn: Path) -> None:
    """Ultralytics takes an .npy that lies beside an image for that image."""
    expected = make(samples(drawn), epochs=1)
    for file in (session.scratch() / "images").iterdir():
        file.unlink()
    for file in (drawn / "images/train").glob("*.png"):
        numpy.save(file.with_suffix(".npy"), numpy.zeros((64, 64, 3), numpy.uint8))
    assert_same(make(samples(drawn), epochs=1), expected)


def test_partners_come_from_a_block_of_eight_batches() -> None:
    """Every position has a block, blocks cover an epoch, and the remainder belongs to the last."""
    order = EpochOrder(samples=100, batch_size=4, epochs=1, seed=0)
    blocks = [order.neighbours(position) for position in range(100)]
    assert all(position in block for position, block in enumerate(blocks))
    assert sorted(set(blocks), key=lambda block: block.start) == [range(32), range(32, 64), range(64, 100)]
    assert EpochOrder(3, 16, 1, 0).neighbours(2) == range(3)


def test_albumentations_draws_from_the_samples_seed(drawn: Path) -> None:
    """It has generators of its own, and is installed on Kaggle's image."""
    albumentations = pytest.importorskip("albumentations")
    noise = [
        albumentations.to_dict(albumentations.GaussNoise(p=0.7)),
        albumentations.to_dict(albumentations.Blur(p=0.5)),
    ]
    one, other = samples(drawn, augmentations=noise), samples(drawn, augmentations=noise)
    backwards = [other[Sample(1, position)] for position in reversed(range(len(other)))]
    assert_same([one[Sample(1, position)] for position in range(len(one))], backwards[::-1])
    assert any(not torch.equal(a["img"], b["img"]) for a, b in zip(make(one), make(samples(drawn)), strict=True))


@pytest.mark.parametrize(
    ("samples", "batch", "workers"), [(100, 4, 2), (7, 3, 4), (1000, 16, 1), (130, 16, 0), (263, 2, 3)]
)
def test_ring_is_long_enough_for_all_that_is_in_use_at_one_time(samples: int, batch: int, workers: int) -> None:
    """Whatever batches the loader has handed out, no two images that their samples draw from share a slot."""
    order = EpochOrder(samples, batch, 4, seed=0)
    ring = 3 * len(order.neighbours(0)) + 5 * workers * batch
    batches = list(order)
    for first in range(len(batches)):
        places = set()
        for sample in (one for each in batches[first : first + max(4 * workers, 1)] for one in each):
            places |= {sample.epoch * samples + position for position in order.neighbours(sample.position)}
        assert len({place % ring for place in places}) == len(places)
