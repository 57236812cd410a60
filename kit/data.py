"""Data sets: find what `data=` names, resolve its paths, and describe it in a file that Ultralytics reads the same.

A `data.yaml` is written for another machine more often than not: without `path`, with one that is relative, with
Roboflow's `../train/images`. The paths are resolved against the file's own folder and written, absolute, into a copy
in scratch; the data set itself is never written to. The copy has no `download:`, which Ultralytics would execute.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kit import session, shapes, storage
from kit.errors import DataError

SPLITS = ("train", "val", "test")
IMAGES = {
    ".bmp",
    ".dng",
    ".heic",
    ".jpeg",
    ".jpg",
    ".mpo",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
    ".avif",
    ".jp2",
    ".jpeg2000",
}


@dataclass(frozen=True)
class DataSet:
    """A data set on this machine.

    Attributes:
        path: What to hand to Ultralytics: a `data.yaml` with absolute paths, or a classification set's folder.
        names: The classes, in the order of their numbers.
    """

    path: Path
    names: tuple[str, ...]


def resolve(name: str) -> DataSet:
    """Find a data set.

    Args:
        name: `shapes` (the embedded one), `auto` (the one that is attached under the input folder), a `data.yaml`, a
            folder that holds one, a classification set's folder, or a name that Ultralytics knows (`coco8.yaml`).

    Raises:
        DataError: It is missing or broken.
    """
    if name == "auto":
        path = _attached()
    elif name == "shapes":
        path = shapes.make(session.scratch() / "datasets" / "shapes")
    else:
        path = Path(name).expanduser().absolute()
    if path.is_dir():
        described = [path / f"data{suffix}" for suffix in (".yaml", ".yml") if (path / f"data{suffix}").is_file()]
        if not described and (path / "train").is_dir():
            return _classification(path)
        if not described:
            raise DataError(f"The folder '{path}' holds neither a data.yaml nor a folder 'train': check data=...")
        path = described[0]
    if not path.is_file() and (built_in := _built_in(name)):
        return DataSet(built_in, _names(built_in, _read(built_in)))
    return _detection(path)


def _attached() -> Path:
    found = sorted(path for suffix in ("yaml", "yml") for path in session.inputs().rglob(f"data.{suffix}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"No data.yaml was found under '{session.inputs()}': attach a YOLO data set with «Add input», or give "
            "data=PATH. For a trial without one: data=shapes model=yolov8n.yaml imgsz=160."
        )
    raise DataError(f"Several data sets are attached, choose one with data=PATH: {', '.join(map(str, found))}.")


def _detection(path: Path) -> DataSet:
    values = _read(path)
    if "val" not in values and "validation" in values:
        values["val"] = values.pop("validation")
    for split in ("train", "val"):
        if not values.get(split):
            raise DataError(f"'{path}' has no '{split}': it must name the folders of the train and val images.")
    names = _names(path, values)
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
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()
    folder = storage.make_folder(session.scratch() / "datasets" / hashlib.sha256(text).hexdigest()[:12])
    storage.publish(folder / "data.yaml", lambda file: file.write(text), durable=False)
    return DataSet(folder / "data.yaml", names)


def _place(path: Path, split: str, roots: list[Path], place: str) -> Path:
    if found := _find(roots, place):
        return found
    raise DataError(f"'{path}' names '{place}' for '{split}', where there are no images (seen from '{path.parent}').")


def _find(roots: list[Path], place: str) -> Path | None:
    """Find a split's images: as written, and with the leading `../` that Roboflow's exports have too much."""
    shorter = place[3:] if place.startswith("../") else place
    for candidate in [root / text for text in (place, shorter) for root in roots]:
        if candidate.is_file() or (candidate.is_dir() and _has_image(candidate)):
            return candidate.resolve()
    return None


def _has_image(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGES for file in folder.rglob("*"))


def _classification(path: Path) -> DataSet:
    names = tuple(sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir()))
    if not names:
        raise DataError(f"'{path / 'train'}' holds no folders: a classification set has one folder per class.")
    if not any((path / split).is_dir() for split in ("val", "validation", "valid", "test")):
        raise DataError(f"'{path}' has no folder 'val': a classification set needs 'train' and 'val'.")
    return DataSet(path, names)


def _names(path: Path, values: dict[str, Any]) -> tuple[str, ...]:
    names, count = values.get("names"), values.get("nc")
    if names is None and isinstance(count, int):
        names = [f"class_{number}" for number in range(count)]
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"'{path}' must list the classes as `names:`, numbered from 0, but has {names!r}.")
    if count is not None and count != len(names):
        raise DataError(f"'{path}' lists {len(names)} classes under `names:` and says `nc: {count}`: correct one.")
    return tuple(map(str, names))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8", errors="ignore"))
    except OSError as error:
        raise DataError(f"The data set '{path}' cannot be read: {error.strerror}. Check data=...") from error
    except yaml.YAMLError as error:
        raise DataError(f"'{path}' is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise DataError(f"'{path}' must hold `train:`, `val:` and `names:` but holds {type(values).__name__}.")
    return values


def _built_in(name: str) -> Path | None:
    """Return the description of a data set that Ultralytics ships and downloads from an archive."""
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None or Path(name).name != name:
        return None
    path = Path(spec.origin).parent / "cfg" / "datasets" / name
    return path if path.is_file() and str(_read(path).get("download", "")).startswith("http") else None
