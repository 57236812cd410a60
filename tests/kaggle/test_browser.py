"""The notebook in real browsers, on today's JupyterLab and on Kaggle's versions, and through papermill."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.help import training

browser_module = pytest.importorskip("playwright.sync_api", reason="no playwright")

from kit.kaggle import notebook, session  # noqa: E402
from kit.run import status  # noqa: E402
from tests.help import browser as own  # noqa: E402
from tests.help.browser import FRONTS, Notebook, browsing, serving, wait_until  # noqa: E402

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    with browsing() as browser:
        yield browser


@pytest.fixture
def settings(place: Path, pretrained: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """About a minute of training from a pretrained file, in short epochs; the notebook is in the working folder."""
    values = pretrained(place, epochs=100, images=24, plots=True, close_mosaic=0)
    write(place, values)
    return values


def write(place: Path, values: dict[str, Any]) -> None:
    node = notebook.build()
    for cell in node.cells:
        cell.source = cell.source.replace("SETTINGS = dict(", f"SETTINGS = dict(**{values!r}, ")
    nbformat.write(node, place / "working/train.ipynb")


def completed(place: Path) -> int:
    return int(status.read(place / "working/runs/train").get("completed", 0))


def running(place: Path) -> bool:
    """Tell whether the training process lives."""
    pid = status.read(place / "working/runs/train").get("pid", 0)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_download(page: Notebook, name: str, place: Path) -> None:
    """What arrives is whole, and is what the checksum beside the link says."""
    wait_until(lambda: page.offers(name), 60, f"{name} is offered")
    file, shown = page.download(name, place)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == shown
    if name.endswith(".pt"):
        assert set(training.read(file)) >= {"epoch"} if name == "latest.pt" else file.stat().st_size > 10_000


@pytest.mark.parametrize("name", FRONTS)
def test_notebook_in_a_browser(name: str, place: Path, settings: dict[str, Any], chromium: Any) -> None:
    """Run, look, download, stop, run again, lose the kernel, run again, finish."""
    front = FRONTS[name]
    with serving(front, place) as server:
        page = Notebook(chromium.new_page(viewport={"width": 1280, "height": 1500}), front, server)
        page.open()
        page.run_all()

        page.wait_for_state("Training", 180)
        wait_until(lambda: completed(place) >= 3, 60, "three epochs")
        before = page.moving()
        wait_until(lambda: all(a != b for a, b in zip(before[:1], page.moving(), strict=False)), 30, "bars move")
        wait_until(lambda: page.moving()[2:] != before[2:], 30, "curves move")
        wait_until(lambda: page.offers("best.pt"), 60, "downloads are offered")
        for file in ("best.pt", "latest.pt", "results.csv"):
            check_download(page, file, place)
        assert running(place), "all that while training ran"

        page.stop()
        page.wait_for_state("Stopped, everything is saved", 60)
        calm = r"Stopped in epoch \d+/100, batch \d+/\d+ \(a stop was asked for\)\. Run again to resume"
        assert re.search(calm, page.text(".kit-log"))
        wait_until(lambda: not running(place), 30, "the process has left")
        assert page.page.locator("text=Traceback").count() == 0
        assert page.page.locator("text=KeyboardInterrupt").count() == 0
        stopped_at = completed(place)

        time.sleep(1)
        page.run_all()
        page.wait_for_state("Training", 120)
        wait_until(lambda: "resumed" in page.text(".kit-legend"), 60, "the resume line")
        assert completed(place) >= stopped_at
        wait_until(lambda: completed(place) > stopped_at + 2, 60, "it goes on")

        os.kill(server.kernel(), signal.SIGKILL)
        wait_until(lambda: not running(place), 60, "no orphan is left")
        killed_at = completed(place)
        wait_until(page.dismiss, 60, "the front end says that the kernel has died")
        page.page.wait_for_function(front.ready, timeout=60_000)
        page.run_all()
        page.wait_for_state("Finished", 240)
        assert killed_at > stopped_at
        assert completed(place) == 100
        for file in ("best.pt", "latest.pt", "slim-best.pt", "plots.zip"):
            check_download(page, file, place)
        wait_until(lambda: page.page.locator("img.kit-picture").count() == 1, 120, "predictions are shown")
        page.page.close()


def test_pictures_of_the_readme_are_taken(tmp_path: Path, chromium: Any) -> None:
    """By `pictures.py`, of a run that is stopped and goes on."""
    script = session.REPOSITORY / "tests/dashboard/pictures.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "docs"), "--epochs", "8"], check=True, timeout=900)
    taken = {path.name for path in (tmp_path / "docs").iterdir()}
    assert taken >= {path.name for path in (session.REPOSITORY / "docs").glob("*.png")}


def test_notebook_through_papermill(place: Path, settings: dict[str, Any], chromium: Any) -> None:
    """A batch run: one line per epoch, one last card, no second names; and it reads well as HTML."""
    write(place, {**settings, "epochs": 5})
    environment = {
        **os.environ,
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "KIT_SESSION_START": str(time.time()),
        "KIT_REPO": str(own.session.REPOSITORY),
        "KIT_REF": "HEAD",
    }
    python = FRONTS["lab3"].venv / "bin/python"
    for command in (["papermill", "train.ipynb", "out.ipynb"], ["nbconvert", "--to", "html", "out.ipynb"]):
        subprocess.run([python, "-m", *command], cwd=place / "working", env=environment, check=True)
    node = nbformat.read(place / "working/out.ipynb", as_version=4)
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    printed = "".join(output.get("text", "") for output in outputs)
    assert len(re.findall(r"^epoch \d/5 ", printed, re.MULTILINE)) == 5
    assert not (place / "working/runs/train/downloads").exists()

    page = chromium.new_page(viewport={"width": 1000, "height": 1200})
    page.goto(f"file://{place}/working/out.html")
    assert page.locator(".kit-head b").first.text_content() == "Finished"
    assert page.locator(".kit-plot path[stroke]").count() > 3
    assert "runs/train/checkpoints/best.pt" in (page.locator("a[download='best.pt']").first.get_attribute("href") or "")
    assert page.locator("img.kit-picture").count() == 1
    page.close()
