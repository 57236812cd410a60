"""The kit as an installed package, outside a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kit.kaggle import session

REPOSITORY = session.REPOSITORY


def test_every_package_of_the_kit_is_installed() -> None:
    """Each folder of modules is named in pyproject.toml, and the configs with them."""
    named = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(REPOSITORY) for path in (REPOSITORY / "kit").rglob("*.py")}
    assert {*named} == {".".join(folder.parts) for folder in folders} | {"kit.configs"}


@pytest.mark.slow
def test_installed_kit_works_outside_a_checkout(place: Path) -> None:
    """`pip install .`, then the command line with its own config, from another folder."""
    source, site = place / "source", place / "site"
    for name in ("kit", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(source)]
    subprocess.run(pip, check=True, capture_output=True, timeout=600)
    shutil.rmtree(source)
    assert list(site.glob("*.dist-info/licenses/LICENSE"))
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for words, said in (
        (["status"], "No run in"),
        (["train", "epochs=1", "imgsz=32", "batch=64"], "Training finished: 1 epochs"),
        (["status"], "finished"),
    ):
        command = [sys.executable, "-m", "kit", *words]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
        assert said in done.stdout, done.stdout + done.stderr
