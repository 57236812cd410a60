"""What is attached: one walk over the input folder finds checkpoints, descriptions of data sets, archives and wheels.

It goes through no images: an input of a million files on a network disk takes minutes to list.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kit.kaggle import session

PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".rar", ".7z")
KEPT = (".pt", ".yaml", ".yml", ".whl", *PACKED)  # ends of the names that are asked for
VALIDATION = ("val", "validation", "valid", "test")  # folders of a classification set, in the order of Ultralytics


class Place(NamedTuple):
    """A folder with the names of its subfolders and of those of its files that can be of use (`KEPT`)."""

    folder: Path
    folders: tuple[str, ...]
    files: tuple[str, ...]


def walk(root: Path) -> Iterator[Place]:
    """Yield a folder and those below it, but for folders of images and labels and links."""
    for name, folders, files in os.walk(root):
        folders.sort()
        kept = tuple(sorted(file for file in files if file.lower().endswith(KEPT)))
        yield Place(Path(name), tuple(folders), kept)
        if {"images", "labels"} <= {*folders}:
            folders[:] = [folder for folder in folders if folder not in ("images", "labels")]
        if _has_classes(Path(name), folders):
            folders[:] = [folder for folder in folders if folder not in ("train", *VALIDATION)]


def _has_classes(folder: Path, folders: list[str]) -> bool:
    """Tell a data set with one folder of images per class: `train` holds folders alone, and the first files alone."""
    if "train" not in folders or {*VALIDATION}.isdisjoint(folders):
        return False
    with suppress(OSError), os.scandir(folder / "train") as entries:
        classes = sorted(entry.path if entry.is_dir() else "" for entry in entries)
        if classes and all(classes):
            with os.scandir(classes[0]) as images:
                return not any(entry.is_dir() or entry.name.endswith(".pt") for entry in images)
    return False


def attached() -> tuple[Place, ...]:
    """Return the walk over the input folder, which is made once and again after `forget`."""
    return _attached(session.inputs())


@cache
def _attached(root: Path) -> tuple[Place, ...]:
    return tuple(walk(root))


def forget() -> None:
    """Look anew the next time: a data set may have been attached."""
    _attached.cache_clear()


def files(pattern: str) -> list[Path]:
    """Return what is attached under a name like a pattern (`latest*.pt`), sorted; folders of such a name too."""
    named = (place.folder / name for place in attached() for name in (*place.folders, *place.files))
    return sorted(path for path in named if fnmatchcase(path.name, pattern))
