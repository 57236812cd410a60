"""The notebook, made from this file so that it cannot drift from the kit: `python -m kit notebook`."""

from __future__ import annotations

from pathlib import Path

import nbformat

from kit.kaggle import session

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

BOOTSTRAP = r'''
# The kit at a tag, a branch or a commit (all 40 digits); the variables KIT_REPO and KIT_REF override the two.
REPO, REF = "https://github.com/your-name/kaggle-yolo-kit.git", "main"
# A copy of it stands in where it cannot be cloned, and only there: the folder of an input that is yours, say
# "/kaggle/input/my-kit" (or KIT_COPY). From no other is anything run or installed.
COPY = ""

import os, re, sys, tempfile
from pathlib import Path
from subprocess import DEVNULL, run

CLONE = """export GIT_TERMINAL_PROMPT=0 GIT_ASKPASS=true LC_ALL=C  # a prompt would hang
cd "$0" && git init -q && timeout 15 git fetch -q --depth 1 "$1" "$2" &&
git checkout -q FETCH_HEAD && git rev-parse HEAD"""
WRONG_REF = "remote ref|not our ref"
REASONS = {  # what git says, and what that means
    "git: .*not found": "git is not installed: attach a copy of the repository (Add input) and name it as COPY",
    WRONG_REF: "it has no such tag, branch or commit: correct REF",
    "uthentication|' not found|denied|not appear|error: 40": "it is private or misspelt: correct REPO or attach a COPY",
    "": "is the internet on (Session options)? Or attach a copy of the repository (Add input) and name it as COPY",
}


def get_kit(repo, ref, copy):
    home = "/kaggle/temp" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else Path.home() / ".cache"
    clones = Path(os.environ.get("KIT_SCRATCH") or home, "kaggle-yolo-kit", ref)  # a folder for each commit
    for folder in [Path.cwd(), *Path.cwd().parents, clones / ref]:  # the notebook may lie in a clone
        if (folder / "kit/kaggle/bootstrap.py").is_file():
            return folder
    clones.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=clones.parent) as new:
        git = run(["sh", "-c", CLONE, new, repo, ref], stdin=DEVNULL, capture_output=True, text=True)
        if git.returncode == 0:
            commit = clones / git.stdout.strip()
            if not commit.is_dir():
                os.rename(new, commit)
            return commit
    trouble = f"The kit could not be cloned from {re.sub('//.*@', '//', repo)} at '{ref}'"
    words = next(words for words in REASONS if re.search(words, git.stderr))
    reason = REASONS[words]
    copies = sorted(clones.glob("*/kit/kaggle/bootstrap.py"), key=os.path.getmtime)
    copies = copies or (sorted(Path(copy).rglob("kit/kaggle/bootstrap.py")) if copy else [])
    if not copies or words == WRONG_REF:
        attached = sorted(Path(os.environ.get("KIT_INPUT") or "/kaggle/input").rglob("kit/kaggle/bootstrap.py"))
        found = ", ".join(f"'{file.parents[2]}'" for file in attached)
        reason += f". Not used, because COPY does not name it: {found}" if attached and not copies else ""
        raise SystemExit(f"{trouble}: {reason}.\n" + re.sub("//[^ ]*@", "//", git.stderr))
    print(f"{trouble}: the copy in {copies[-1].parents[2]} is used")
    return copies[-1].parents[2]


REPO, REF, COPY = [os.environ.get(f"KIT_{name}") or globals()[name] for name in ("REPO", "REF", "COPY")]
os.environ["KIT_WHEELS"] = COPY  # which may hold those too
sys.path.insert(0, str(get_kit(REPO, REF, COPY)))
for name in [name for name in sys.modules if name.partition(".")[0] == "kit"]:
    del sys.modules[name]  # of the version that an earlier run of this cell has loaded
from kit.kaggle import bootstrap

print(bootstrap.setup())
'''.strip()

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
    # kit=dict(session_hours=9, remind_epochs=25),
)"""

TRAIN = """\
# Goes on from the newest good checkpoint, or starts. The stop button saves and ends it; run the cell again to go on.
# Close the page or the computer: training goes on. After a reload look into runs/train/progress.html.
result = kit.train(**SETTINGS)"""

PROGRESS = """\
# Also from another notebook, while training runs in this one.
kit.progress(**SETTINGS)"""

DOWNLOADS = """\
# Click to download. The same links stand below the training cell, and work while it runs.
kit.downloads(**SETTINGS)"""

RESULTS = """\
# Measures best.pt once, in a process of its own, and keeps the pictures in runs/train/results.
kit.results(**SETTINGS)"""


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
        v4.new_markdown_cell("## 5. Where it stands"),
        v4.new_code_cell(PROGRESS),
        v4.new_markdown_cell("## 6. Take the models with you"),
        v4.new_code_cell(DOWNLOADS),
        v4.new_markdown_cell("## 7. How good it is"),
        v4.new_code_cell(RESULTS),
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
