"""Data sets: find what `data=` names, and describe it in a file that Ultralytics reads the same.

The description goes to scratch, with absolute paths; the data set itself is never written to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kit.config import Config
from kit.data import description, offer, packed, shapes, shipped
from kit.errors import DataError
from kit.kaggle import inputs, session
from kit.kaggle.inputs import VALIDATION, Place
from kit.store import disk

LISTED = 20  # data sets that a message lists

Found = dict[Path, Hashable]  # path -> what lies there, equal for two descriptions of the same; None where it is broken


@dataclass(frozen=True)
class DataSet:
    """A data set on this machine.

    Attributes:
        path: What to hand to Ultralytics: a `data.yaml` with absolute paths, or a classification set's folder.
        names: The classes, in the order of their numbers.
        source: Where it was found: its own description, its folder, its archive, or the name that Ultralytics knows.
        values: The entries of the `data.yaml`; none of a classification set.
    """

    path: Path
    names: tuple[str, ...]
    source: Path = field(default=Path(), compare=False, repr=False)
    values: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def trained(self, config: Config) -> list[str]:
        """Return the classes that a run trains."""
        return ["item"] if config.get("single_cls") else list(self.names)


def resolve(name: str, classify: bool | None = False) -> DataSet:
    """Find a data set; what is packed is unpacked.

    Args:
        name: `shapes` (the embedded one), `auto` (the one that is attached under the input folder), a description
            (`data.yaml`, whatever its name), a folder that holds one at whatever depth, a classification set's folder,
            an archive of one of these, its address on the web, or a name that Ultralytics knows (`coco8.yaml`).
        classify: The images are to lie in one folder per class; None where that is not known.

    Raises:
        DataError: It is missing or broken, or there are several.
    """
    if "://" in name:
        return _unpacked(name, packed.fetch(name), classify)
    path = _locate(name, classify)
    if packed.is_archive(path):
        return _unpacked(str(path), packed.unpack(path), classify)
    if path.is_dir():
        return _classification(path)
    if not path.is_file() and (built_in := shipped.description_of(name)):
        return _shipped(built_in, name)
    return _detection(path)


def check(name: str, classify: bool | None = False) -> None:
    """Check that `resolve` will find a data set, as far as that can be told before anything is unpacked or downloaded.

    It looks anew at what is attached: a notebook lives long.

    Raises:
        DataError: It is missing or broken, or there are several.
    """
    inputs.forget()
    if not ("://" in name or packed.is_archive(_locate(name, classify))):
        resolve(name, classify)


def bring(dataset: DataSet) -> DataSet:
    """Download the images of a data set that Ultralytics knows by name, where they are not here yet.

    Raises:
        DataError: They cannot be downloaded.
        StorageError: There is no room.
    """
    if "download" not in dataset.values:
        return dataset
    folder = packed.fetch(shipped.address_of(dataset.values))
    return _detection(dataset.path, [folder / str(dataset.values["path"]), folder], dataset.source)


def _locate(name: str, classify: bool | None) -> Path:
    if name == "auto":
        return _find_attached(classify)
    if name == "shapes":
        return shapes.make(session.scratch() / "datasets" / "shapes")
    path = Path(name).expanduser().absolute()
    return _find_within(path, classify) if path.is_dir() else path


def _unpacked(name: str, folder: Path, classify: bool | None) -> DataSet:
    try:
        return replace(resolve(str(folder), classify), source=Path(name))
    except DataError as error:
        text, lines = error.message.replace(str(folder), name.partition("?")[0]), error.hint.splitlines()[2:]
        advice = ["Put one there, with their names, before it is packed:", *lines]
        raise DataError(text, "\n".join(advice) if lines else "") from error


def _find_attached(classify: bool | None) -> Path:
    root = session.inputs()
    described, classified = _search(inputs.attached())
    found, others = (classified, described) if classify else (described, classified)
    if path := _choose(root, found) or (_choose(root, others) if classify is None else None):
        return path
    if not others and (path := _choose(root, _archives(inputs.attached()))):
        return path
    if not (classify or others) and (error := offer.missing(inputs.attached())):
        raise error
    advice = "Attach one with «Add input», or give data=PATH."
    if other := next((path for path, content in others.items() if content), None):
        advice = f"'{other}' has one folder per class, which needs task=classify and a model for it (yolo11n-cls.pt)."
        if classify:
            advice = (
                f"'{other}' is not for the task 'classify', which needs one folder per class: choose another model."
            )
    raise DataError(
        f"No YOLO data set was found under '{root}'.",
        f"{advice} For a trial without one: data=shapes model=yolov8n.yaml imgsz=160.",
    )


def _find_within(folder: Path, classify: bool | None) -> Path:
    for own in (folder / "data.yaml", folder / "data.yml"):
        if own.is_file():
            return own
    places = list(inputs.walk(folder))
    described, classified = _search(places)
    first, second = (classified, described) if classify else (described, classified)
    if path := _choose(folder, first) or _choose(folder, second):
        return path
    if not folder.is_relative_to(packed.folder()) and (path := _choose(folder, _archives(places))):
        return path
    if not classify and (error := offer.missing(places)):
        raise error
    if (folder / "train").is_dir():
        return folder
    raise DataError(f"The folder '{folder}' holds neither a data.yaml nor a folder 'train'.", "Check data=...")


def _choose(root: Path, found: Found) -> Path | None:
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


def _search(places: Iterable[Place]) -> tuple[Found, Found]:
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


def _archives(places: Iterable[Place]) -> Found:
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


def _detection(path: Path, roots: Iterable[Path] = (), source: Path | None = None) -> DataSet:
    values, names = description.understand(path, roots)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()
    folder = disk.make_folder(session.scratch() / "datasets" / hashlib.sha256(text).hexdigest()[:12])
    disk.publish(folder / "data.yaml", lambda file: file.write(text), durable=False)
    return DataSet(folder / "data.yaml", names, source or path, values)


def _classification(path: Path) -> DataSet:
    names = description.class_folders(path / "train")
    if not names:
        raise DataError(f"'{path / 'train'}' holds no folders.", "A classification set has one folder per class.")
    if description.validation_folder(path) is None:
        raise DataError(f"'{path}' has no folder 'val'.", "A classification set needs 'train' and 'val'.")
    return DataSet(path, names, path)


def _shipped(path: Path, name: str) -> DataSet:
    """Find the images of a data set that Ultralytics ships; those that it downloads as an archive may come later.

    Raises:
        DataError: They are not here, and no archive is known: its script is not run.
    """
    values = description.read(path)
    for folder in shipped.folders(values):
        with suppress(DataError):
            return _detection(path, [folder], Path(name))
    if shipped.address_of(values):
        return DataSet(path, description.classes(path, values), Path(name), values)
    raise DataError(
        f"The images of '{name}' are not here, and Ultralytics fetches them by a script, which is not run: attach them "
        f"in a folder named '{values['path']}', which holds '{values['train']}' and '{values['val']}'."
    )
