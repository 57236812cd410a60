"""One walk over what is attached: it finds what is asked for and goes through no images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kit.kaggle import inputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIT_INPUT", str(tmp_path))
    return tmp_path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the folders that a walk lists, seen from its root."""
    seen = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(str(path)) or real(path))
    list(inputs.walk(folder))
    return {os.path.relpath(path, folder) for path in seen}


@pytest.mark.parametrize(
    "name",
    [
        "latest.pt",
        "my-kit/runs/train/checkpoints/latest.pt",
        "datasets/owner/slug/latest (1).pt",
        "out/train/run1/checkpoints/latest.pt",
        "out/train/checkpoints/latest.pt",
        "out/images/latest.pt",
    ],
)
def test_checkpoint_is_found_wherever_it_lies(folder: Path, name: str) -> None:
    """Also below folders that have the names of a data set's parts."""
    path = put(folder / name)
    for other in ("out/val/run2/checkpoints/status.json", "out/test/run3/images/a.png"):
        put(folder / other)
    assert inputs.files("latest*.pt") == [path]


@pytest.mark.parametrize(
    ("images", "pruned"),
    [
        (["set/images/train/a.jpg", "set/labels/train/a.txt"], {"set/images", "set/labels"}),
        (["set/train/images/a.jpg", "set/train/labels/a.txt"], {"set/train/images", "set/train/labels"}),
        (["set/train/cat/a.jpg", "set/train/dog/a.jpg", "set/val/cat/b.jpg"], {"set/train/dog", "set/val/cat"}),
    ],
)
def test_images_are_not_gone_through(
    folder: Path, monkeypatch: pytest.MonkeyPatch, images: list[str], pruned: set[str]
) -> None:
    """There may be a million of them, on a disk at the other end of a network."""
    for name in images:
        put(folder / name)
    put(folder / "set/data.yaml")
    assert inputs.files("*.yaml") == [folder / "set/data.yaml"]
    assert listed(folder, monkeypatch).isdisjoint({*pruned, *(f"{each}/train" for each in pruned)})


def test_walk_is_made_once_until_it_is_to_be_made_anew(folder: Path) -> None:
    """A training begins with what is attached then."""
    one = put(folder / "one/latest.pt")
    assert inputs.files("latest*.pt") == [one]
    two = put(folder / "two/latest.pt")
    assert inputs.files("latest*.pt") == [one]
    inputs.forget()
    assert inputs.files("latest*.pt") == [one, two]


def test_other_folder_has_a_walk_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests change it, and so may a notebook."""
    put(folder / "latest.pt")
    assert len(inputs.files("latest*.pt")) == 1
    monkeypatch.setenv("KIT_INPUT", str(folder / "none"))
    assert inputs.files("latest*.pt") == []
