r"""A data set's own words: its `data.yaml`, or its folders where images lie in one folder per class.

A `data.yaml` is written for another machine more often than not: without `path`, with one that is relative, with
Roboflow's `../train/images`, with `/content/...` or `C:\Users\...`. Its paths are seen from the file's own folder, and
from where Ultralytics sees them: the current folder and its `datasets_dir`.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from kit.errors import DataError
from kit.kaggle import session
from kit.kaggle.inputs import VALIDATION
from kit.store import disk, trust

LARGEST = 1 << 20  # bytes of a description, and values in it
SPLITS = ("train", "val", "test")
IMAGES = frozenset(  # as Ultralytics has them
    {".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
)
LOAD = partial(yaml.load, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # as Ultralytics; that in C takes tabs
UNREADABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")  # to YAML


def text_of(path: Path) -> str:
    """Return the text of a file in UTF-8 or UTF-16, with or without a mark at its beginning."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8", errors="ignore").replace("\0", "")


def parse(text: str) -> Any:
    """Read YAML or JSON; characters that YAML does not take are left out, as Ultralytics leaves them out."""
    try:
        return LOAD(text)
    except yaml.YAMLError as error:
        try:
            return LOAD(UNREADABLE.sub("", text))
        except yaml.YAMLError:
            raise error from None


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
        values = parse(text_of(path))
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
    names, count = values.get("names"), _count(path, values.get("nc"))
    if names is None and count is not None and count <= LARGEST:
        names = [f"class_{number}" for number in range(count)]
    if isinstance(names, dict):
        numbered = {_number(key): name for key, name in names.items()}
        if numbered.keys() == {*range(len(names))}:
            names = [numbered[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"'{path}' must list the classes as `names:`, numbered from 0, but has {names!r}.")
    if count is not None and count != len(names):
        raise DataError(f"'{path}' lists {len(names)} classes under `names:` and says `nc: {count}`.", "Correct one.")
    return tuple(map(str, names))


def _count(path: Path, given: Any) -> int | None:
    """Return a number of classes, which may be a text; None where there is none."""
    try:
        if given is None or int(float(given)) == float(given):
            return None if given is None else int(float(given))
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"'{path}' says `nc: {given}`, which is no number of classes.", "Correct it, or leave it out.")


def _number(key: Any) -> Any:
    """Return the number of a class, which may be a text."""
    try:
        return int(key)
    except (TypeError, ValueError, OverflowError):
        return key


def understand(path: Path, roots: Iterable[Path] = ()) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a `data.yaml` and find its images.

    Args:
        path: Of the file.
        roots: Where its images may lie; by default where its `path:` may lead, and its own folder.

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
    names, given = classes(path, values), values.get("path")
    folder, *_ = *roots, path.parent
    roots = list(roots) or [*(place / str(given) for place in (path.parent, *places()) if given), path.parent]
    for split in SPLITS:
        if values.get(split):
            wanted = values[split] if isinstance(values[split], list) else [values[split]]
            found = [_find(roots, str(place)) for place in wanted]
            if None in found:
                if split == "test":
                    del values[split]  # exports name one that was never filled; training does not need it
                    continue
                seen = (f"its `path: {given}` and " if given else "") + f"'{path.parent}'"
                missing = f"'{wanted[found.index(None)]}' for '{split}', where there are no images (seen from {seen})"
                raise DataError(f"'{path}' names {missing}.")
            values[split] = [*map(str, found)] if isinstance(values[split], list) else str(found[0])
    for name in ("download", "nc"):
        values.pop(name, None)
    return values | {"names": [*names], "path": str(folder)}, names


def places() -> list[Path]:
    """Return where Ultralytics looks for a `path:` that is relative: the current folder, and its `datasets_dir`."""
    homes = (os.environ.get("YOLO_CONFIG_DIR"), os.environ.get("XDG_CONFIG_HOME", "~/.config"))
    files = [Path(home).expanduser() / "Ultralytics/settings.json" for home in homes if home]
    chosen = [str(disk.read_json(file).get("datasets_dir", ".")) for file in files]
    return [Path.cwd() / each for each in (".", *chosen, "datasets", str(session.scratch() / "datasets"))]


def _find(roots: Iterable[Path], place: str) -> Path | None:
    """Find a split's images: as written, else by the end of the path, whose beginning may be of another machine."""
    parts = PureWindowsPath(place).parts  # which takes both kinds of slashes
    ends = [parts[number:] for number in range(len(parts))]
    shorter = ["/".join(end) for end in ends if ".." not in end and {*end} != {"images"}]  # that alone may be any split
    for candidate in [root / text for text in (place, *shorter) for root in roots]:
        if candidate.is_file() or is_full(candidate):
            return candidate.resolve()
    return None


def is_full(folder: Path) -> bool:
    """Tell a folder that holds an image from others, and from what is none."""
    return folder.is_dir() and has_image(folder)


def has_image(folder: Path | str) -> bool:
    """Tell whether there is an image in a folder, at whatever depth; it looks no further than to the first."""
    return any(is_image(os.path.basename(path)) for path, is_folder in below(str(folder)) if not is_folder)


def below(folder: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Yield what lies below a folder, and whether it is a folder, as Ultralytics lists it: nothing hidden, with links.

    A link that leads back to a folder above it is not followed: Ultralytics lists its images 41 times.

    Args:
        folder: Where to look.
        above: The true paths of the folders whose links led here.
    """
    folders = []
    with suppress(OSError), os.scandir(folder) as entries:  # may be unreadable
        for entry in entries:
            if not entry.name.startswith("."):
                is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                folders += [entry] * is_folder
                yield entry.path, is_folder
    for entry in folders:
        if not entry.is_symlink():
            yield from below(entry.path, above)
        else:
            chain, target = (*above, os.path.realpath(folder)), Path(os.path.realpath(entry.path))
            if not any(Path(each).is_relative_to(target) for each in chain):
                yield from below(entry.path, chain)


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
