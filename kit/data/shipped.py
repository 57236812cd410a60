"""Data sets that Ultralytics ships a description of (`coco8.yaml`): which ones, and where their images may lie."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from kit.data import description, packed
from kit.kaggle import inputs, session


def description_of(name: str) -> Path | None:
    """Return the description of a data set that Ultralytics ships, with or without its ending."""
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None or Path(name).name != name:
        return None
    folder = Path(spec.origin).parent / "cfg/datasets"
    return next((path for path in (folder / name, folder / f"{name}.yaml") if path.is_file()), None)


def address_of(values: dict[str, Any]) -> str:
    """Return where the archive of such a data set is downloaded; empty where there is none, but a script, say."""
    address = str(values.get("download"))
    return address if address.startswith(("http://", "https://")) else ""


def folders(values: dict[str, Any]) -> list[Path]:
    """Return the folders that may hold the images: where Ultralytics looks, what is attached, what was downloaded."""
    name, address = str(values["path"]), address_of(values)
    fetched = packed.fetched(address)
    found = [place / name for place in description.places()] + _attached(name)
    return [*filter(Path.is_dir, found + [fetched / name, fetched] * bool(address))]


def _attached(name: str) -> list[Path]:
    """Return the attached folders that begin with a name, or have a word that does, and those below; the best first."""

    def plain(text: str) -> str:
        return re.sub("[^a-z0-9]", "", text.lower())

    def like(part: str) -> bool:
        return any(word.startswith(plain(name)) for word in (plain(part), *re.split("[^a-z0-9]", part.lower())))

    root = session.inputs()
    found = [each.folder for each in inputs.attached() if any(map(like, each.folder.relative_to(root).parts))]
    return sorted(found, key=lambda folder: (plain(folder.name) != plain(name), len(folder.parts), folder))
