"""What of data sets lies below a folder: descriptions, folders of images by class, archives; and which one is meant."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path

import yaml

from kit.data import description, packed
from kit.errors import DataError
from kit.kaggle.inputs import VALIDATION, Place

LISTED = 20  # data sets that a message lists

Found = dict[Path, Hashable]  # path -> what lies there, equal for two descriptions of the same; None where it is broken


def choose(root: Path, found: Found) -> Path | None:
    """Return the one data set of those found; a broken one, to say what it lacks, where there is no other.

    Raises:
        DataError: There are several.
    """
    whole: dict[Hashable, Path] = {}
    for path in sorted(found, key=lambda path: (f"'{path.parent.resolve()}/" not in repr(found[path]), path)):
        if found[path]:
            whole.setdefault(found[path], path)  # the one that lies with its images, not a copy of it
    paths = sorted(whole.values()) or sorted(found)
    if len(paths) < 2:
        return paths[0] if paths else None
    if not whole:
        raise DataError(
            f"{len(paths)} descriptions of data sets lie under '{root}', but none of them is whole, for example "
            f"'{paths[0]}'.",
            "Give data=PATH for one of them, to be told what it lacks.",
        )
    lines = [f"  data={path}" for path in paths[:LISTED]]
    if len(paths) > LISTED:
        lines.append(f"  … and {len(paths) - LISTED} more")
    raise DataError(f"{len(paths)} data sets lie under '{root}'.", "\n".join(["Choose one of them:", *lines]))


def look(places: Iterable[Place]) -> tuple[Found, Found]:
    """Look for descriptions, and for folders of images by class."""
    described: Found = {}
    classified: Found = {}
    done: list[Path] = []
    for folder, folders, files in places:
        if any(folder.is_relative_to(each) for each in done):
            continue
        if "args.yaml" in files:  # what an earlier training left: a data.yaml in it is a copy
            done.append(folder)
            continue
        for file in files:
            if file.lower().endswith((".yaml", ".yml")) and _describes(folder / file):
                described[folder / file] = _content(folder / file)
        if "train" in folders and (names := _classes(folder / "train")):
            classified[folder] = None if {*VALIDATION}.isdisjoint(folders) else (str(folder), names)
            done.append(folder)
    return described, classified


def archives(places: Iterable[Place]) -> Found:
    """Return the archives that may hold a data set: Kaggle unpacks most, not all."""
    files = (place.folder / name for place in places for name in place.files)
    held = (path for path in files if packed.is_archive(path) and packed.holds_images(path, description.is_image))
    return {path: str(path) for path in held}


def _describes(path: Path) -> bool:
    """Tell a description from the many other files of its format; what is named data.yaml may be a broken one."""
    if path.stem == "data":
        return True
    try:
        if not path.is_file() or path.stat().st_size > description.LARGEST:
            return False
        text = description.text_of(path)
        values = description.parse(text) if "train" in text and ("names" in text or "nc" in text) else None
    except (OSError, yaml.YAMLError, ValueError, RecursionError):  # a date that is none; a thousand brackets
        return False
    return isinstance(values, dict) and "train" in values and not {"names", "nc"}.isdisjoint(values)


def _content(path: Path) -> Hashable:
    try:
        values, names = description.understand(path)
    except (DataError, OSError):
        return None
    return tuple(str(values.get(name)) for name in ("train", "val", "kpt_shape")), names


def _classes(train: Path) -> tuple[str, ...]:
    """Return the classes of a folder of a classification set; none where it is something else."""
    names = description.class_folders(train)
    labelled = not {"images", "labels"}.isdisjoint(names)
    return () if labelled or not any(description.has_image(train / name) for name in names) else names
