"""What the README tells a new user to do, in the tests' own Kaggle: the notebook as it is, with a stand-in model."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.data import shapes
from kit.kaggle import session as session_of
from tests.help import training, twin
from tests.help.training import differences, rows
from tests.help.twin import Kaggle, Session

README = (session_of.REPOSITORY / "README.md").read_text(encoding="utf-8")


def readme_settings() -> dict[str, Any]:
    """Return what the README's example trains with."""
    call = re.search(r"^kit\.train\((.*)\)$", README, re.MULTILINE)
    assert call
    parsed = ast.parse(f"dict({call[1]})", mode="eval").body
    assert isinstance(parsed, ast.Call)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in parsed.keywords}


def walk(place: Path, big: Callable[[str], Path], **less: Any) -> None:
    """Train, lose the session, run again, download, predict, and train further from what was downloaded.

    Args:
        place: An empty folder.
        big: Makes a stand-in for a published model.
        less: Settings in place of the README's and the config's, to be done sooner.
    """
    settings = readme_settings()
    kaggle = Kaggle(place / "account")
    drawn = shapes.make(place / "drawn", splits={"train": 4, "val": 2}, size=64)
    data = kaggle.attach(drawn.parent, "my-data")
    if twin.unshare():
        assert settings["data"] == f"{data}/data.yaml"
    settings |= {"data": f"{data}/data.yaml", **less}
    model = Path(shutil.copy(big(Path(settings["model"]).stem), kaggle.draft))  # where a download by its name would lie

    untouched = run(kaggle, {**settings, "kit": {"run": "runs/untouched"}}, "Training finished")
    killed = kaggle.session("Interactive", settings, watch=lambda news: (news.get("completed") or 0) >= 2)
    assert killed.killed, killed.text
    model.unlink()
    again = run(kaggle, settings, "Resuming from checkpoint", "Training finished")
    one, other = (training.read(kaggle.draft / f"runs/{name}/checkpoints/latest.pt") for name in ("untouched", "train"))
    assert differences(one, other) == []
    assert rows(one) == rows(other)
    assert "Found checkpoint" not in untouched.text

    downloaded = download(kaggle, again, "best.pt", place)
    check_model(downloaded, next((drawn.parent / "images/val").glob("*.png")))
    start = kaggle.attach(downloaded, "models/best.pt")
    run(kaggle, {**settings, "model": str(start), "epochs": 2, "kit": {"run": "runs/further"}}, "Training finished: 2")


def run(kaggle: Kaggle, settings: dict[str, Any], *lines: str) -> Session:
    """Run all cells to the end, and see that the notebook shows some lines."""
    done = kaggle.session("Interactive", settings)
    assert done.code == 0, done.text
    for line in lines:
        assert line in done.text
    return done


def download(kaggle: Kaggle, done: Session, name: str, target: Path) -> Path:
    """Fetch what the notebook's link of this name leads to."""
    link = re.search(rf"^{re.escape(name)}: (\S+)", done.text, re.MULTILINE)
    assert link, done.text
    offered = Path(link[1])
    working = kaggle.folder(kaggle.draft)
    return Path(shutil.copy(kaggle.draft / offered.relative_to(working), target / name))


def check_model(path: Path, image: Path) -> None:
    """It predicts, in plain Ultralytics, with the names of its own classes."""
    from ultralytics import YOLO

    model = YOLO(path)
    assert list(model.names.values()) == list(shapes.NAMES)
    assert len(model.predict(image, imgsz=64, verbose=False, save=False)) == 1
