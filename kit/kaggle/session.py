"""Where am I: on Kaggle or not, interactive or batch, which folders, which GPUs, how much time is left.

Nothing here imports torch or makes a CUDA context. Importing does nothing: every fact is looked up when it is asked
for, so a test (or a user) sets the environment and asks again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from kit.errors import ConfigError, StorageError

REPOSITORY = Path(__file__).resolve().parents[2]
QUOTA = 20 * 10**9  # bytes of the working folder that Kaggle keeps
HOURS = {"gpu": 12.0, "cpu": 12.0, "tpu": 9.0}  # Kaggle's limit for one session


def on_kaggle() -> bool:
    """Tell Kaggle by its own variable; `COLAB_RELEASE_TAG` is set there too and tells nothing."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def run_type() -> str:
    """Return 'interactive' or 'batch' on Kaggle, 'local' elsewhere."""
    return os.environ.get("KAGGLE_KERNEL_RUN_TYPE", "local").lower()


def working() -> Path:
    """Return the folder that is kept: `$KIT_WORKING`, `/kaggle/working`, or the current one."""
    return _folder("KIT_WORKING", "/kaggle/working", Path.cwd())


def inputs() -> Path:
    """Return the folder of attached data sets, read-only: `$KIT_INPUT` or `/kaggle/input`."""
    return _folder("KIT_INPUT", "/kaggle/input", Path("/kaggle/input"))


def scratch() -> Path:
    """Return a folder of this user's for what may be lost: `$KIT_SCRATCH`, `/kaggle/temp`, or the system's.

    Raises:
        StorageError: The folder cannot be made, or belongs to somebody else, who could plant files in it.
    """
    folder = _scratch()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise StorageError(
            f"'{folder}' cannot be made ({error.strerror}).", "Set KIT_SCRATCH to another folder."
        ) from error
    if state.st_uid != os.getuid() or not stat.S_ISDIR(state.st_mode):
        raise StorageError(f"'{folder}' belongs to another user.", "Set KIT_SCRATCH to a folder of yours.")
    return folder


def _scratch() -> Path:
    return _folder("KIT_SCRATCH", "/kaggle/temp", Path(tempfile.gettempdir())) / f"kit-{os.getuid()}"


def _folder(variable: str, kaggle: str, elsewhere: Path) -> Path:
    if os.environ.get(variable):
        return Path(os.environ[variable]).expanduser().absolute()
    return Path(kaggle) if on_kaggle() else elsewhere


def rescue_folder(run_folder: Path) -> Path:
    """Return where the last checkpoint of a run goes that its own disk has no room for; it goes with the session."""
    place = scratch() if _scratch().exists() else _scratch()  # who only looks makes nothing
    return place / "rescued" / hashlib.sha256(str(run_folder).encode()).hexdigest()[:16]


def free(folder: Path) -> int:
    """Return the bytes free in a folder: on its disk, and of the 20 GB that Kaggle keeps of the working folder."""
    room = shutil.disk_usage(folder).free
    if on_kaggle() and folder.absolute().is_relative_to(working()):
        room = min(room, int(os.environ.get("KIT_QUOTA", QUOTA)) - used(working()))
    return max(room, 0)


def used(folder: Path) -> int:
    """Return the bytes that the files in a folder take, each counted once whatever its names."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a temporary file that has just gone
                state = os.lstat(os.path.join(parent, name))
                sizes[state.st_dev, state.st_ino] = state.st_blocks * 512
    return sum(sizes.values())


def started() -> float:
    """Return when the session began, in Unix seconds.

    That is `$KIT_SESSION_START`, on Kaggle the container's start, elsewhere this process's.
    """
    if os.environ.get("KIT_SESSION_START"):
        try:
            return float(os.environ["KIT_SESSION_START"])
        except ValueError:
            given = os.environ["KIT_SESSION_START"]
            raise ConfigError(f"KIT_SESSION_START must be a time in Unix seconds but is '{given}'.") from None
    process = Path("/proc/1/stat" if on_kaggle() else "/proc/self/stat")
    try:  # proc(5): field 22 is the start of the process in clock ticks after boot
        ticks = int(process.read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return time.time()


def deadline(hours: float | str) -> float | None:
    """Return when the session ends, in Unix seconds, or None where there is no limit.

    Args:
        hours: Length of the session in hours, or 'auto': Kaggle's limit on Kaggle, none elsewhere.
    """
    if hours == "auto":
        if not on_kaggle():
            return None
        hours = HOURS["tpu" if os.environ.get("TPU_NAME") or os.environ.get("TPU_ACCELERATOR_TYPE") else "gpu"]
    return started() + float(hours) * 3600


def gpus(limit: float = 20.0) -> list[str]:
    """Return the names of the GPUs, as `nvidia-smi` gives them; none where it does not answer.

    Args:
        limit: Seconds that it has.
    """
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
        return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return []


def import_path() -> str:
    """Return the PYTHONPATH with which a child process finds the kit."""
    return os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
