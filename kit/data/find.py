"""Data sets: find what `data=` names, and describe it in a file that Ultralytics reads the same.

The description goes to scratch, with absolute paths; the data set itself is never written to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kit.config import Config
from kit.data import description, offer, packed, search, shapes, shipped
from kit.errors import DataError
from kit.kaggle import inputs, session
from kit.store import disk


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
    if not packed.is_archive(path):
        return _understood(path, name)
    return _unpacked(str(path), packed.unpack(path), classify)


def check(name: str, classify: bool | None = False) -> None:
    """Check that `resolve` will find a data set, as far as that can be told before anything is unpacked or downloaded.

    It looks anew at what is attached: a notebook lives long.

    Raises:
        DataError: It is missing or broken, or there are several.
    """
    inputs.forget()
    if "://" not in name and not packed.is_archive(path := _locate(name, classify)):
        _understood(path, name)


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


def _understood(path: Path, name: str) -> DataSet:
    if path.is_dir():
        return _classification(path)
    if not path.is_file() and (built_in := shipped.description_of(name)):
        return _shipped(built_in, name)
    return _detection(path)


def _unpacked(name: str, folder: Path, classify: bool | None) -> DataSet:
    try:
        return replace(resolve(str(folder), classify), source=Path(name))
    except DataError as error:
        said = (text.replace(str(folder), packed.without_secrets(name)) for text in (error.message, error.hint))
        raise DataError(*said) from error


def _find_attached(classify: bool | None) -> Path:
    root = session.inputs()
    described, classified = search.look(inputs.attached())
    found, others = (classified, described) if classify else (described, classified)
    if path := search.choose(root, found) or (search.choose(root, others) if classify is None else None):
        return path
    if not others and (path := search.choose(root, search.archives(inputs.attached()))):
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
    described, classified = search.look(places)
    first, second = (classified, described) if classify else (described, classified)
    if path := search.choose(folder, first) or search.choose(folder, second):
        return path
    if not folder.is_relative_to(packed.folder()) and (path := search.choose(folder, search.archives(places))):
        return path
    if not classify and (error := offer.missing(places, folder.is_relative_to(packed.folder()))):
        raise error
    if (folder / "train").is_dir():
        return folder
    raise DataError(f"The folder '{folder}' holds neither a data.yaml nor a folder 'train'.", "Check data=...")


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
        f"The images of '{name}' are not here, and Ultralytics fetches them by a script, which is not run.",
        f"Attach them in a folder named '{values['path']}', which holds '{values['train']}' and '{values['val']}'.",
    )
