"""A Kaggle of the tests' own: sessions in containers with Kaggle's folders, its limit, and its ways to end.

Where the system lends namespaces (root, or unprivileged ones on Linux), a session is a container: `/kaggle/working`,
`/kaggle/input` (read-only) and `/kaggle/temp` lie where they lie on Kaggle, process 1 started when the session did, and
there is no network but loopback. Elsewhere the kit's variables name the folders, and a proxy that is not there stands
for the missing network. Either way every session begins with an image of its own, and its limit is a SIGKILL for all
that it started.

Not covered: GPUs, Kaggle's own servers and front end, memory and CPU limits, a disk that is really full at 20 GB.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from kit.kaggle import notebook, session
from kit.run import status

PYTHON = os.path.abspath(os.environ.get("KIT_TWIN_PYTHON", sys.executable))  # its packages are those of the image
WHEELS = Path(PYTHON).parent.parent / "wheels"  # what the package index has; `make twin` fills it
NAME, MARK = "train.ipynb", "KAGGLE_CONTAINER_NAME"
INTERACTIVE = """
import nbclient, nbformat
node = nbformat.read("train.ipynb", as_version=4)
try:
    nbclient.NotebookClient(node).execute()
finally:
    nbformat.write(node, "train.ipynb")
"""
COPY = "kit"  # the input with what a session without internet needs
BATCH = ("-m", "papermill", NAME, "__notebook__.ipynb", "--kernel", "python3", "--no-progress-bar")
UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--net")
# A root of its own from what is there, and Kaggle's folders in it. The shell stays process 1: a kernel whose parent is
# process 1 takes itself for an orphan.
CONTAINER = """
set -e
tree=$1 working=$2
shift 2
mount -t tmpfs twin /mnt
for each in /*; do
    case $each in /mnt | /proc | /kaggle) continue ;; esac
    if [ -L "$each" ]; then
        cp -P "$each" /mnt/
    elif [ -d "$each" ]; then
        mkdir "/mnt$each"
        mount --rbind "$each" "/mnt$each"
    fi
done
mkdir -p /mnt/proc /mnt/kaggle/working /mnt/kaggle/input /mnt/kaggle/temp
mount -t proc proc /mnt/proc
mount --bind "$working" /mnt/kaggle/working
mount --bind "$tree/temp" /mnt/kaggle/temp
mount --bind "$tree/input" /mnt/kaggle/input
mount -o remount,bind,ro /mnt/kaggle/input
ip link set lo up
chroot /mnt env -C /kaggle/working "$@"
exit $?
"""


@dataclass(frozen=True)
class Session:
    """One session that has ended.

    Attributes:
        code: Exit code of what ran the notebook; 0 is Kaggle's «complete», negative a signal.
        killed: Whether it was killed, at the limit or before.
        seconds: How long it took.
        working: The folder that was `/kaggle/working`, as the session left it.
        text: What the notebook shows; empty for an interactive one that was killed.
    """

    code: int
    killed: bool
    seconds: float
    working: Path
    text: str

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.working / "runs/train"

    @property
    def status(self) -> dict[str, Any]:
        """What the run last said."""
        return status.read(self.run)


class Kaggle:
    """An account on Kaggle with one notebook, its draft's disk and its attached inputs.

    Args:
        place: An empty folder.

    Attributes:
        draft: `/kaggle/working` of interactive sessions, kept from one to the next.
        input: What is attached; never written by a session, which is checked.
        container: The name of the last session's.
        quota: Bytes of the working folder that are kept.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.draft, self.input = place / "draft", place / "input"
        for folder in (self.draft, self.input, place / "home"):
            folder.mkdir(parents=True)
        self.quota, self.container = session.QUOTA, ""
        self.repository = _publish(place / "repository")

    def folder(self, path: Path) -> Path:
        """Return where a session sees the folder of its inputs, or its working folder."""
        return Path("/kaggle", "input" if path == self.input else "working") if unshare() else path

    def attach(self, source: Path, name: str) -> Path:
        """Attach a file or a folder as `/kaggle/input/NAME`, in place of what was there, and return where it is."""
        target = self.input / name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        return self.folder(self.input) / name

    def console(self) -> str:
        """Return what all sessions have printed beside the notebook."""
        return (self.place / "console.txt").read_text()

    def wipe(self) -> None:
        """Lose the draft's disk, as Kaggle does where persistence is off, or failed."""
        shutil.rmtree(self.draft)
        self.draft.mkdir()

    def session(
        self,
        run_type: str,
        settings: dict[str, Any],
        *,
        limit_s: float = 600,
        age_s: float = 0,
        internet: bool = True,
        watch: Callable[[dict[str, Any]], bool] = lambda news: False,
    ) -> Session:
        """Upload the notebook, and run all its cells in a new container.

        Args:
            run_type: `Interactive`, or `Batch`, which begins with an empty working folder.
            settings: What the user writes into the settings cell.
            limit_s: Seconds after which the container is killed.
            age_s: Seconds that the session was used for something else before.
            internet: Whether the repository and the package index can be reached.
            watch: Called with `status.json` ten times a second; the container is killed when it returns True.
        """
        batch = run_type == "Batch"
        working = self.place / "batch" if batch else self.draft
        if batch:
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir()
        nbformat.write(self._notebook(settings, internet), working / NAME)
        command = BATCH if batch else ("-c", INTERACTIVE)
        more = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)} if internet and WHEELS.is_dir() else {}
        more |= {"KIT_SESSION_START": str(time.time() - age_s)} if age_s else {}
        began, before = time.monotonic(), _listing(self.input)
        code, killed = self.execute(command, run_type, working, limit_s, watch, **more)
        assert _listing(self.input) == before, "a session has written into its inputs"
        shown = working / ("__notebook__.ipynb" if batch else NAME)
        return Session(code, killed, time.monotonic() - began, working, text(shown) if shown.exists() else "")

    def execute(
        self,
        command: Sequence[str],
        run_type: str,
        working: Path,
        limit_s: float = 600,
        watch: Callable[[dict[str, Any]], bool] = lambda news: False,
        **environment: str,
    ) -> tuple[int, bool]:
        """Run Python in a new container, and return its exit code and whether it was killed; nothing is left of it."""
        self.container = f"twin-{uuid.uuid4().hex}"
        image = _image(self.place / "image")
        shutil.rmtree(self.place / "temp", ignore_errors=True)
        (self.place / "temp").mkdir()
        variables = {
            "PATH": f"{image / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.place / "home"),
            "LANG": "C.UTF-8",
            "COLAB_RELEASE_TAG": "release-colab",  # set on Kaggle too
            "KAGGLE_KERNEL_RUN_TYPE": run_type,
            "KAGGLE_URL_BASE": "https://www.kaggle.com",
            MARK: self.container,
            "PIP_CONFIG_FILE": os.devnull,  # no index of this machine
            "KIT_QUOTA": str(self.quota),
            **environment,
        }
        words = [str(image / "bin/python"), *command]
        if prefix := unshare():
            words = [*prefix, "sh", "-c", CONTAINER, "sh", str(self.place), str(working), *words]
        else:
            folders = {"WORKING": working, "INPUT": self.input, "SCRATCH": self.place / "temp"}
            variables |= {f"KIT_{folder}": str(path) for folder, path in folders.items()}
            variables.setdefault("KIT_SESSION_START", str(time.time()))
            variables |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        with open(self.place / "console.txt", "ab") as console:
            process = subprocess.Popen(
                words,
                cwd=working,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            end, killed = time.monotonic() + limit_s, False
            try:
                while process.poll() is None and not killed:
                    time.sleep(0.1)
                    killed = time.monotonic() > end or watch(status.read(working / "runs/train"))
            finally:
                kill(self.container)
        return process.wait(), killed

    def _notebook(self, settings: dict[str, Any], internet: bool) -> nbformat.NotebookNode:
        """Return the notebook as its user has edited it: where the kit is, and the settings."""
        node = nbformat.read(notebook.PATH, as_version=4)
        for cell in node.cells:
            if internet:
                cell.source = re.sub(r"https://github\.com/your-name/[\w.-]+", f"file://{self.repository}", cell.source)
            else:
                cell.source = cell.source.replace('COPY = ""', f'COPY = "{self.folder(self.input) / COPY}"')
            cell.source = cell.source.replace("SETTINGS = dict(", f"SETTINGS = dict(**{settings!r},")
        return node


def text(path: Path) -> str:
    """Return what a notebook shows, as text."""
    cells = nbformat.read(path, as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join(
        each.get("text") or each.get("data", {}).get("text/plain") or "\n".join(each.get("traceback", []))
        for each in shown
    )


def processes(container: str) -> list[int]:
    """Return what runs in a container, found by the name in the environment that all of it has inherited."""
    found, mark = [], f"{MARK}={container}\0".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # gone, or somebody else's
            if mark in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


def kill(container: str) -> None:
    """Kill all of a container: what could start something else meanwhile is looked for until nothing is left."""
    end = time.monotonic() + 30
    while left := processes(container):
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert time.monotonic() < end, f"processes {left} outlive a SIGKILL"
        time.sleep(0.02)


@functools.cache
def unshare() -> tuple[str, ...]:
    """Return the command that makes a container here, or nothing where the system lends no namespaces."""
    prefix = UNSHARE if os.getuid() == 0 else (*UNSHARE, "--map-root-user")
    if not shutil.which("unshare"):
        return ()
    try_it = "mount -t tmpfs twin /mnt && mount -t proc proc /proc && ip link set lo up"
    done = subprocess.run([*prefix, "sh", "-c", try_it], capture_output=True, check=False)
    return prefix if done.returncode == 0 else ()


@functools.cache
def bare() -> bool:
    """Tell whether the image comes without ultralytics, as Kaggle's does."""
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ultralytics') is not None)"
    return subprocess.run([PYTHON, "-c", look], check=False).returncode == 0


@functools.cache
def packages() -> list[str]:
    """Return the folders that the interpreter's packages lie in."""
    look = "import json, site; print(json.dumps(site.getsitepackages()))"
    found: list[str] = json.loads(subprocess.run([PYTHON, "-c", look], check=True, capture_output=True).stdout)
    return found


def _image(folder: Path) -> Path:
    """Make an environment that has all of the interpreter's packages, and that goes with the session."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", "--clear", str(folder)], check=True)
    (own,) = folder.glob("lib/python3*/site-packages")
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in packages())
    (own / "image.pth").write_text(lines)
    return folder


def _publish(folder: Path) -> Path:
    """Put what is in the working tree, committed or not, into a repository that can be cloned."""
    for name in ("kit", "configs", "requirements.txt"):
        source = session.REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    git = ["git", "-C", str(folder), "-c", "user.name=twin", "-c", "user.email=twin@localhost"]
    for words in ("init --quiet --initial-branch=main", "add .", "commit --quiet --message=kit"):
        subprocess.run([*git, *words.split()], check=True)
    return folder


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the files of a folder, but for what Python keeps of an attached copy of the kit where it can write."""
    states = {str(path): path.stat() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}
