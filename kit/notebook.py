"""The notebook, made from this file so that it cannot drift from the kit: `python -m kit notebook`."""

from __future__ import annotations

from pathlib import Path

import nbformat

from kit import session

PATH = session.REPOSITORY / "notebooks" / "train.ipynb"

INTRODUCTION = """\
# Train YOLO, lose nothing

**Run all cells.** When the session ends (time limit, idle stop, crash), open the notebook and **run all cells again**:
training goes on from the last checkpoint as if nothing had happened.

| Do this once | Where |
|---|---|
| Accelerator: **GPU T4 x2** | Session options |
| Persistence: **Files only** | Session options |
| Internet: **on** | Session options |
| Attach your data set | Add input |
"""

BOOTSTRAP = """\
# The repository to clone; the variable KIT_REPO overrides it. A copy that is here already is used as it is.
REPO = "https://github.com/your-name/kaggle-yolo-kit.git"

import os, subprocess, sys, tempfile
from pathlib import Path

def find_kit():
    here = Path.cwd()  # the notebook's own folder, before anything changes it
    attached = Path(os.environ.get("KIT_INPUT", "/kaggle/input")).rglob("kit/bootstrap.py")
    for folder in [here, *here.parents, *(path.parent.parent for path in attached)]:
        if (folder / "kit" / "bootstrap.py").is_file():
            return folder
    scratch = "/kaggle/temp" if os.path.isdir("/kaggle") else tempfile.gettempdir()
    folder = Path(os.environ.get("KIT_SCRATCH", scratch)) / "kaggle-yolo-kit"
    if not (folder / "kit" / "bootstrap.py").is_file():
        command = ["git", "clone", "--quiet", "--depth", "1", os.environ.get("KIT_REPO", REPO), str(folder)]
        if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            raise SystemExit(f"The kit could not be cloned: {done.stderr.strip()}\\n"
                             "Is the internet on (Session options), and is REPO right? Or attach a copy as an input.")
    return folder

sys.path.insert(0, str(find_kit()))
from kit import bootstrap
print(bootstrap.setup())"""

REPORT = """\
import kit

kit.doctor()"""

SETTINGS = """\
# Any training setting of Ultralytics, by its own name. An empty block trains what configs/*.yaml says:
# on Kaggle configs/kaggle_config.yaml, elsewhere a quick start on drawn shapes.
SETTINGS = dict(
    # data="/kaggle/input/my-data/data.yaml",
    # model="yolo11n.pt",
    # epochs=100,
    # kit=dict(session_hours=9),
)"""

TRAIN = """\
# Goes on from the newest good checkpoint, or starts. To stop and keep everything: the stop button.
result = kit.train(**SETTINGS)"""

DOWNLOADS = """\
# Click to download. Both also lie in the Output tab, under runs/train/checkpoints.
kit.downloads(**SETTINGS)"""


def build() -> nbformat.NotebookNode:
    """Return the notebook."""
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell(INTRODUCTION),
        v4.new_markdown_cell("## 1. Get the kit"),
        v4.new_code_cell(BOOTSTRAP),
        v4.new_markdown_cell("## 2. Where am I"),
        v4.new_code_cell(REPORT),
        v4.new_markdown_cell("## 3. Settings"),
        v4.new_code_cell(SETTINGS),
        v4.new_markdown_cell("## 4. Train"),
        v4.new_code_cell(TRAIN),
        v4.new_markdown_cell("## 5. Take the models with you"),
        v4.new_code_cell(DOWNLOADS),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02d}"  # nbformat draws one at random
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return v4.new_notebook(cells=cells, metadata=metadata)


def text() -> str:
    """Return the notebook as the text of its file."""
    return str(nbformat.writes(build())) + "\n"


def write(path: Path = PATH) -> Path:
    """Write the notebook and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(), encoding="utf-8")
    return path
