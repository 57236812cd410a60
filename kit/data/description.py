r"""A data set's own words: its `data.yaml`, or its folders where images lie in one folder per class.

A `data.yaml` is written for another machine more often than not: without `path`, with one that is relative, with
Roboflow's `../train/images`, with `/content/...` or `C:\Users\...`. Its paths are seen from the file's own folder.
"""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from kit.errors import DataError
from kit.kaggle.inputs import VALIDATION
from kit.store import trust

LARGEST = 1 << 20  # bytes of a description, and values in it
SPLITS = ("train", "val", "test")
IMAGES = frozenset(  # as Ultralytics has them
    {".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
)


def read(path: Path) -> dict[str, Any]:
    """Return the entries of a `data.yaml` as they are.

    Raises:
        DataError: It is missing, or no YAML.
    """
    if path.exists() and not path.is_file():  # to open a pipe waits for who writes into it
        raise DataError(f"The data set '{path}' is no plain file.", "Check data=...")
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(
                f"'{path}' has {path.stat().st_size / 1e6:.0f} MB and describes no data set.", "Check data=..."
            )
        values = yaml.safe_load(path.read_text(encoding="utf-8", errors="ignore"))
    except OSError as error:
        raise DataError(f"The data set '{path}' cannot be read: {error.strerror}.", "Check data=...") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError for a date that is none
        raise DataError(f"'{path}' is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise DataError(f"'{path}' must hold `train:`, `val:` and `names:` but holds {type(values).__name__}.")
    if trust.unfolds(values, LARGEST):  # lists of lists of lists, by reference
        raise DataError(f"'{path}' unfolds to more than it holds.", "Write it without references.")
    return values


def classes(path: Path, values: dict[str, Any]) -> tuple[str, ...]:
    """Return the classes that a `data.yaml` lists, in the order of their numbers.

    Raises:
        DataError: They are missing, not numbered from 0, or not as many as it says.
    """
    names, count = values.get("names"), values.get("nc")
    if names is None and isinstance(count, int) and count <= LARGEST:
        names = [f"class_{number}" for number in range(count)]
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"'{path}' must list the classes as `names:`, numbered from 0, but has {names!r}.")
    if count is not None and count != len(names):
        raise DataError(f"'{path}' lists {len(names)} classes under `names:` and says `nc: {count}`.", "Correct one.")
    return tuple(map(str, names))


def understand(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a `data.yaml` and find its images.

    Returns:
        Its entries with absolute paths and without `download:`, which Ultralytics would execute; and its classes.

    Raises:
        DataError: Something in it is missing or broken, or its images are not there.
    """
    values = read(path)
    if "val" not in values and "validation" in values:
        values["val"] = values.pop("validation")
    for split in ("train", "val"):
        if not values.get(split):
            raise DataError(f"'{path}' has no '{split}'.", "It must name the folders of the train and val images.")
    names = classes(path, values)
    roots = [path.parent] if not values.get("path") else [path.parent / str(values["path"]), path.parent]
    for split in SPLITS:
        if values.get(split):
            places = values[split] if isinstance(values[split], list) else [values[split]]
            if split == "test" and not any(_find(roots, str(place)) for place in places):
                del values[split]  # exports name one that was never filled; training does not need it
                continue
            found = [str(_place(path, split, roots, str(place))) for place in places]
            values[split] = found if isinstance(values[split], list) else found[0]
    values.pop("download", None)
    values["path"] = str(path.parent)
    return values, names


def _place(path: Path, split: str, roots: list[Path], place: str) -> Path:
    if found := _find(roots, place):
        return found
    raise DataError(f"'{path}' names '{place}' for '{split}', where there are no images (seen from '{path.parent}').")


def _find(roots: list[Path], place: str) -> Path | None:
    """Find a split's images: as written, else by the end of the path, whose beginning may be of another machine."""
    parts = PureWindowsPath(place).parts  # which takes both kinds of slashes
    ends = [parts[number:] for number in range(len(parts))]
    shorter = ["/".join(end) for end in ends if ".." not in end and {*end} != {"images"}]  # that alone may be any split
    for candidate in [root / text for text in (place, *shorter) for root in roots]:
        if candidate.is_file() or (candidate.is_dir() and has_image(candidate)):
            return candidate.resolve()
    return None


def has_image(folder: Path | str) -> bool:
    """Tell whether there is an image in a folder, at whatever depth; it looks no further than to the first."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif is_image(entry.name):
                return True
    return any(map(has_image, folders))


def is_image(name: str) -> bool:
    """Tell by its name whether Ultralytics takes a file for an image."""
    return os.path.splitext(name)[1].lower() in IMAGES and not name.startswith(".")


def class_folders(train: Path) -> tuple[str, ...]:
    """Return the classes of a folder with one folder per class, in the order in which Ultralytics numbers them."""
    with os.scandir(train) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def validation_folder(path: Path) -> Path | None:
    """Return which folder of a classification set Ultralytics validates by."""
    return next((path / name for name in VALIDATION if (path / name).is_dir()), None)
