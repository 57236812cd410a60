"""The notebook: in step with the kit, and readable without a front end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from kit.kaggle import notebook, session
from kit.run import status
from tests.help import training


def test_notebook_is_in_step_with_the_kit() -> None:
    """`python -m kit notebook` would write the file that is there."""
    assert notebook.PATH.read_text(encoding="utf-8") == notebook.text()


def test_notebook_is_valid_and_empty() -> None:
    """It opens everywhere and carries no outputs."""
    node = nbformat.read(notebook.PATH, as_version=4)
    nbformat.validate(node)
    assert [cell for cell in node.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session's folders, with nothing but the notebook in the one that it runs in."""
    for name in ("working", "input", "scratch"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"KIT_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("KIT_REPO", str(session.REPOSITORY))
    monkeypatch.setenv("KIT_REF", "HEAD")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


def execute(place: Path, **values: Any) -> str:
    """Run the notebook top to bottom and return all that it showed as text."""
    node = notebook.build()
    for cell in node.cells:
        cell.source = cell.source.replace("SETTINGS = dict(", f"SETTINGS = dict(**{values!r}, ")
    client = NotebookClient(node, timeout=900, resources={"metadata": {"path": str(place / "working")}})
    try:
        client.execute()
    except Exception as error:
        error.add_note(_shown(node))
        raise
    return _shown(node)


def _shown(node: nbformat.NotebookNode) -> str:
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


def test_notebook_runs_twice_and_after_a_kill(place: Path) -> None:
    """From a clone of the repository: trained, then finished; killed in the middle, then trained on."""
    values = training.settings(place, epochs=2)
    first = execute(place, **values)
    assert "Starting training from epoch 1/2 (batch 1/3)" in first
    assert "Training finished: 2 epochs" in first
    assert "latest.pt: " in first
    assert "sha256" in first
    assert len(list((place / "scratch").rglob("kit/kaggle/bootstrap.py"))) == 1, "the clone lies in scratch"
    assert "This run is finished: 2 epochs" in execute(place, **values)

    longer = {**values, "epochs": 400, "kit.restarts": 0}
    killed_at = kill_in_the_middle(place, longer)
    again = execute(place, **{**longer, "epochs": killed_at + 2})
    assert "Resumed from epoch" in again
    assert f"Training finished: {killed_at + 2} epochs" in again


def kill_in_the_middle(place: Path, values: dict[str, Any]) -> int:
    """Kill the training process under a running notebook, and return the epochs that its checkpoint holds."""
    run = place / "working/runs/train"
    before = status.read(run)["pid"]

    def watch() -> None:
        while True:
            seen = status.read(run)
            if seen.get("pid") != before and seen.get("completed", 0) >= 4:
                os.kill(seen["pid"], signal.SIGKILL)
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with pytest.raises(Exception, match="ended by SIGKILL"):
        execute(place, **values)
    watcher.join(timeout=60)
    return int(training.read(run / "checkpoints/latest.pt")["epoch"])
