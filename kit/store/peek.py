"""What a checkpoint says of itself, read without torch: the processes around training stay light."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

from kit.errors import CheckpointError
from kit.store import trust


def read_facts(path: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself; its tensors stay on the disk and nothing is executed.

    Returns:
        `run_id`, `run` (the setting `kit.run`), `identity` (`task`, `model`, `names`), `branch`, `step`, `epoch`,
        `epochs` and `best_map`.

    Raises:
        CheckpointError: It is no checkpoint.
    """
    try:
        state = trust.look_through(Path(path))
        progress, architecture, run_id = state["progress"], state["architecture"], state["run_id"]
        if not re.fullmatch(r"[\w-]+", run_id):
            raise ValueError(f"{run_id!r} names no run")  # it becomes a folder's name in the store
        return {
            "run_id": run_id,
            "run": str(state["config"].get("kit", {}).get("run", "")),
            "identity": {key: architecture[key] for key in ("task", "model", "names")},
            "branch": int(progress.get("branch", 0)),
            "step": int(progress["global_step"]),
            "epoch": int(state["epoch"]),
            "epochs": int(progress["epochs"]),
            "best_map": state["best_map"],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is not a checkpoint: {error!r}.") from error


def mentions(path: Path, word: str) -> bool:
    """Tell whether a word, the name of a layer say, stands in a model file's pickle or in a description."""
    try:
        if not zipfile.is_zipfile(path):
            return word.encode() in path.read_bytes()
        with trust.stored(path) as records:
            return any(word.encode() in records.read(name) for name in records.namelist() if name.endswith("/data.pkl"))
    except (OSError, CheckpointError, zipfile.BadZipFile):
        return False


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
