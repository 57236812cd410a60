"""Training samples as pure functions of (seed, epoch, position), on Ultralytics' own data sets.

Three things of Ultralytics' are left out on purpose:
- Mosaic takes its partners from what a worker happened to load last. Here they come from a block of the epoch's order
  around the sample, so that they depend on nothing but its position, and each image is decoded about once.
- `close_mosaic` restarts the loader. Here a sample knows its epoch, and closes mosaic by itself.
- Label caches lie beside the data and are unpickled; decoded images lie there too, and a JPEG with bytes behind its end
  is rewritten in its place. Here a data set is only read: caches are made in this user's scratch, and never read
  from anywhere else.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy
from ultralytics.data import ClassificationDataset
from ultralytics.data.augment import Albumentations

from kit.data import files
from kit.data.check import Scan
from kit.data.images import ImageCache, Loaded, cache_for
from kit.kaggle import session
from kit.run.order import EpochOrder, Sample, mix, seed_all
from kit.yolo.mosaic import make_lazy
from kit.yolo.upstream import ReadOnlyDataset, can_read, label_files, load_cache, read_messages, scanning

T = TypeVar("T")
RULES = 2  # of the scan: raise it whenever it would keep other images of the same files
EMPTY = {"has_uint32": 0, "uinteger": 0}  # no half-used draw


class DeterministicDataset:
    """Mixin over a map-style data set: `dataset[Sample(epoch, position)]` is the same in any process, at any time."""

    order: EpochOrder
    close_mosaic_epoch: int | None = None  # from this one on (from 0), mosaic and its like are closed
    hyp: Any = None  # the settings that the transforms are built from
    processes = 1  # that train on this machine
    root: Any
    _closed = False

    def __getitem__(self, key: Sample | int | list[Sample]) -> Any:
        """Make a sample, or those of a slice; a bare index takes the generators as they are, as Ultralytics does."""
        if isinstance(key, list):
            return [self[each] for each in key]
        if isinstance(key, Sample):
            close = self.close_mosaic_epoch
            if close is not None and key.epoch >= close and not self._closed:
                self._closed = True
                self.close_mosaic(hyp=copy(self.hyp))  # type: ignore[attr-defined]
            self._seed(mix("sample", self.order.seed, *key))
            key = self._index_of(key)
        sample: dict[str, Any] = super().__getitem__(key)  # type: ignore[misc]
        return sample

    def _seed(self, value: int) -> None:
        seed_all(value)

    def _index_of(self, key: Sample) -> int:
        return self.order.permutation(key.epoch)[key.position]


def cache_path(*words: str) -> Path:
    """Return where the label cache of these files goes."""
    folder = session.scratch() / "labels"
    folder.mkdir(exist_ok=True)
    return folder / f"{hashlib.sha256(repr((RULES, *words)).encode()).hexdigest()[:16]}.cache"


def digest(paths: list[str], *rules: Any) -> str:
    """Hash paths, with size and last change of the files."""
    stamps = files.in_threads(files.stamp, paths)
    return hashlib.sha256(repr((paths, stamps, rules)).encode()).hexdigest()


def plain_files(items: list[T], path: Callable[[T], str]) -> list[T]:
    """Return those whose path is no pipe, device or folder; others report what is missing."""
    special = files.in_threads(lambda item: files.stamp(path(item))[0] == files.SPECIAL, items)
    return [item for item, drop in zip(items, special, strict=True) if not drop]


class LabelledDataset(DeterministicDataset, ReadOnlyDataset):
    """Images with boxes, masks, keypoints or rotated boxes."""

    images: ImageCache | None = None
    cache: Any
    _all = False
    _places: dict[int, int]
    _block: tuple[int, range] | None = None
    _albumentations: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._on_disk = kwargs.get("cache") == "disk"
        self.scan = kwargs.pop("scan", None) or Scan()
        super().__init__(*args, **kwargs | ({"cache": None} if self._on_disk else {}))

    def get_img_files(self, img_path: Any) -> list[str]:
        """List the images; only plain files, because opening a pipe waits for its writer."""
        found = super().get_img_files(img_path)
        self.scan.listed = [(path, label, -1) for path, label in zip(found, label_files(found), strict=True)]
        return plain_files(found, lambda file: file)

    def get_cache_hash(self) -> str:
        """Return what the label cache is valid for: the rules, and files that have not changed whatever their dates."""
        rules = (self.use_keypoints, len(self.data["names"]), self.data.get("kpt_shape"), self.single_cls)
        return digest([*self.im_files, *self.label_files], rules, self.channels)

    def verified(self, cache: dict[str, Any]) -> None:
        """Note what the scan says; the labels follow when the classes are chosen."""
        self.scan.dropped, self.scan.repeated = read_messages(cache["msgs"], self.prefix)

    def update_labels(self, include_class: list[int] | None) -> None:
        """Choose the classes, and note what of the labels training uses."""
        super().update_labels(include_class)
        self.scan.kept = [(label["im_file"], label["cls"][:, 0].astype(int).tolist()) for label in self.labels]

    def cache_file(self, path: Path, digest: str) -> Path:
        """Return where the label cache goes: into scratch."""
        return cache_path(str(path), digest)

    @property
    def npy_files(self) -> list[Path]:
        """Decoded images beside the data, which may be anybody's: there are none."""
        return self._npy_files

    @npy_files.setter
    def npy_files(self, files: list[Path]) -> None:
        self._npy_files = [session.scratch() / "no.npy"] * len(files)

    def share_images(self, workers: int) -> None:
        """Keep decoded images where all workers find them, unless the user has chosen Ultralytics' cache in memory."""
        chosen, self.cache = self.cache, "ram"  # has Ultralytics keep nothing of its own from here on
        if chosen:
            return
        sizes = [self._resized(*label["shape"]) for label in self.labels if "shape" in label]
        size = max((h * w for h, w in sizes), default=self.imgsz**2) * self.channels
        # The loader is at most four batches a worker ahead, and a block is at most twice as long as the first one: an
        # upper bound on the positions in use at one time, also across the end of an epoch.
        ring = 3 * len(self.order.neighbours(0)) + 5 * workers * self.order.batch_size
        words = (self.imgsz, self.channels, cv2.__version__)
        self.images, self._all = cache_for(self.im_files, size, ring, words, self._on_disk, self.processes)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        ratio = self.imgsz / max(height, width)
        return min(math.ceil(height * ratio), self.imgsz), min(math.ceil(width * ratio), self.imgsz)

    def _index_of(self, key: Sample) -> int:
        """Return the sample's item, and note the items that its mosaic partners come from."""
        order, block = self.order.permutation(key.epoch), self.order.neighbours(key.position)
        if (key.epoch, block) != self._block:
            self._block = key.epoch, block
            first = key.epoch * self.order.samples
            self._places = {order[position]: first + position for position in block}
            self.buffer = list(self._places)
        return order[key.position]

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Loaded:
        """Load an image, from the shared cache where it is there."""
        place = i if self._all else self._places.get(i) if self._block else None
        if self.images is None or place is None or not rect_mode or resize_short:
            loaded: Loaded = super().load_image(i, rect_mode, resize_short)
            return loaded
        slot = place % self.images.slots
        if (kept := self.images.get(slot, i)) is not None:
            return kept
        loaded = super().load_image(i, rect_mode, resize_short)
        self.images.put(slot, i, loaded)
        return loaded

    def build_transforms(self, hyp: Any) -> Any:
        """Build the transforms, with mosaic drawing its partners from `buffer` whatever the cache."""
        cache, self.cache = self.cache, None
        try:
            transforms = make_lazy(super().build_transforms(hyp))
        finally:
            self.cache = cache
        own = [step.transform for step in transforms.transforms if isinstance(step, Albumentations)]
        if own and hasattr(own[0], "set_random_state"):
            self._albumentations, self._generators = own[0], (numpy.random.default_rng(0), random.Random(0))
            own[0].set_random_state(*self._generators)
        return transforms

    def _seed(self, value: int) -> None:
        """Seed the generators; Albumentations has its own, which Ultralytics would make anew, 50 times as slowly."""
        super()._seed(value)
        if self._albumentations is not None:
            state = {"state": value, "inc": 2 * value + 1}  # any odd number will do
            self._generators[0].bit_generator.state = {"bit_generator": "PCG64", "state": state} | EMPTY
            self._generators[1].seed(value)
            self._albumentations.seed = value


class ClassifiedDataset(DeterministicDataset, ClassificationDataset):  # type: ignore[misc]
    """Images in one folder per class."""

    samples: list[Any]
    base: Any
    prefix: str

    def __init__(self, root: str, args: Any, scan: Scan | None = None, **kwargs: Any) -> None:
        args, self.scan, self._single = copy(args), scan or Scan(), bool(args.single_cls)
        self._order = [*(kwargs.get("names") or {}).values()]
        if args.cache == "disk":  # beside the images
            args.cache = False
        super().__init__(root, args, **kwargs)

    def verify_images(self) -> list[tuple[str, int]]:
        """Check the images, with the cache in scratch: Ultralytics derives its path from `root`."""
        self.scan.listed = sorted(
            ((path, "", number) for path, number in self._numbered(self.samples)), key=lambda each: each[::-1]
        )
        self.samples = plain_files(self.samples, lambda sample: sample[0])
        found = digest([sample[0] for sample in self.samples])
        root, self.root = self.root, str(cache_path(str(self.root), self.prefix, found))
        try:
            with scanning(lambda path: can_read(path, cv2.IMREAD_COLOR)):
                samples: list[tuple[str, int]] = super().verify_images()
            self.scan.dropped, _ = read_messages(load_cache(Path(self.root))["msgs"], self.prefix)
        finally:
            self.root = root
        self.scan.kept = [(path, [0 if self._single else number]) for path, number in self._numbered(samples)]
        return samples

    def _numbered(self, samples: list[Any]) -> list[tuple[str, int]]:
        """Return images with the numbers of their classes in train, and not those of classes that train has not."""
        order = {name: number for number, name in enumerate(self._order)}
        numbers = {number: order[name] for number, name in enumerate(self.base.classes) if name in order}
        return [(path, numbers[number]) for path, number in samples if number in numbers]

    def close_mosaic(self, hyp: Any) -> None:
        """There is no mosaic in classification."""
