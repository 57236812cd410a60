"""Images and labels without a `data.yaml`: the lines that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import yaml

from kit.data import description, files
from kit.data.report import count
from kit.errors import DataError
from kit.kaggle import session
from kit.kaggle.inputs import VALIDATION, Place

READ = 10_000  # label files


def missing(places: Iterable[Place], is_packed: bool = False) -> DataError | None:
    """Return the error that no file describes the images and labels that lie in one of these folders, if any do.

    Args:
        places: The folders.
        is_packed: They lie in an archive, where the file belongs too.
    """
    for folder, folders, _ in places:
        if splits := _splits(folder, folders):
            target = session.working() / f"{folder.name}.yaml"
            names = [f"class_{number}" for number in range(_classes(folder, splits))]
            values = {**({} if is_packed else {"path": str(folder)}), **splits, "names": names}
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
            advice = f"Write one, with their names, into '{target}', and give data={target}:"
            advice = "Put one there, with their names, before it is packed:" if is_packed else advice
            return DataError(
                f"'{folder}' holds images and labels, but no data.yaml that names their {count(len(names), 'class')}.",
                "\n  ".join([advice, *text.splitlines()]),
            )
    return None


def _splits(folder: Path, folders: Iterable[str]) -> dict[str, str]:
    """Return where the images of train and val lie, seen from their common folder; nothing where there are none."""
    if {"images", "labels"} <= {*folders}:
        found = {name: f"images/{name}" for name in os.listdir(folder / "images")}
        found |= {"train": "images"} if not any(name.startswith("train") for name in found) else {}
    else:
        found = {name: f"{name}/images" for name in folders if (folder / name / "labels").is_dir()}
    found = {name: place for name, place in sorted(found.items()) if description.is_full(folder / place)}
    train = next((place for name, place in found.items() if name.lower().startswith("train")), "")
    tested = (place for start in VALIDATION for name, place in found.items() if name.lower().startswith(start))
    return {"train": train, "val": next(tested, train)} if train else {}


def _classes(folder: Path, splits: dict[str, str]) -> int:
    """Return the number of classes: one more than the highest that the labels have."""
    places = {
        folder.joinpath(*("labels" if part == "images" else part for part in Path(place).parts))
        for place in splits.values()
    }
    labels = (path for place in sorted(places) for path, _ in description.below(str(place)) if path.endswith(".txt"))
    return 1 + max(files.in_threads(_highest, [*islice(labels, READ)]), default=0)


def _highest(path: str) -> int:
    try:
        rows = Path(path).read_text(encoding="utf-8", errors="ignore").splitlines()
        return max((int(float(row.split()[0])) for row in rows if row.strip()), default=0)
    except (OSError, ValueError, OverflowError):  # a list of the names, say
        return 0
