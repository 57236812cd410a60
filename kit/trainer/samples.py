"""Training samples as pure functions of (seed, epoch, index), on Ultralytics' own data sets.

Three things of Ultralytics' are left out on purpose:
- Mosaic takes its partners from what a worker happened to load last. Here they come from the whole set, so that they
  depend on nothing but the sample's seed.
- `close_mosaic` restarts the loader. Here a sample knows its epoch and closes by itself.
- Label caches lie beside the data and are unpickled. Here they are made in this user's scratch, and never read from
  anywhere else.
"""

from __future__ import annotations

import hashlib
from copy import copy
from pathlib import Path
from typing import Any

from ultralytics.data import ClassificationDataset, YOLODataset

from kit import randomness, session
from kit.randomness import Sample


class PureSamples:
    """Mixin over a map-style data set: `dataset[Sample(epoch, item)]` is the same in whatever process, whenever.

    Attributes:
        seed: Of the run.
        closing: From this epoch on (counted from 0), mosaic and its like are closed; None for never.
        hyp: The settings that the transforms are built from.
    """

    seed = 0
    closing: int | None = None
    hyp: Any = None
    root: Any
    _closed = False

    def __getitem__(self, key: Sample | int) -> dict[str, Any]:
        """Make a sample; a bare index takes the generators as they are, as Ultralytics does."""
        if isinstance(key, Sample):
            if self.closing is not None and key.epoch >= self.closing and not self._closed:
                self._closed = True
                self.close_mosaic(hyp=copy(self.hyp))  # type: ignore[attr-defined]
            randomness.seed_all(randomness.mix("sample", self.seed, key.epoch, key.item))
            key = key.item
        sample: dict[str, Any] = super().__getitem__(key)  # type: ignore[misc]
        return sample


def cache_path(*words: str) -> Path:
    """Return where the label cache of these files goes."""
    folder = session.scratch() / "labels"
    folder.mkdir(exist_ok=True)
    return folder / f"{hashlib.sha256(repr(words).encode()).hexdigest()[:16]}.cache"


class LabelledSamples(PureSamples, YOLODataset):  # type: ignore[misc]
    """Images with boxes, masks, keypoints or rotated boxes."""

    def build_transforms(self, hyp: Any) -> Any:
        """Build the transforms; with `cache == 'ram'` Mosaic draws partners from the whole set, and nothing is kept."""
        if self.augment:
            self.cache = "ram"
        return super().build_transforms(hyp)

    def _load_or_scan_cache(self, path: Path, digest: str) -> tuple[dict[str, Any], bool]:
        loaded: tuple[dict[str, Any], bool] = super()._load_or_scan_cache(cache_path(str(path), digest), digest)
        return loaded


class ClassifiedSamples(PureSamples, ClassificationDataset):  # type: ignore[misc]
    """Images in one folder per class."""

    def verify_images(self) -> list[tuple[str, int]]:
        """Check the images, with the cache in scratch: Ultralytics derives its path from `root`."""
        root, self.root = self.root, str(cache_path(str(self.root)))
        try:
            samples: list[tuple[str, int]] = super().verify_images()
        finally:
            self.root = root
        return samples

    def close_mosaic(self, hyp: Any) -> None:
        """There is no mosaic in classification."""
