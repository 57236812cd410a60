"""A manifest says what one backup of a run is: its files with their checksums, and where the run stood."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.backup.secrets import missing
from kit.store.folder import LATEST

Manifest = dict[str, Any]

READS, PAUSE_S = 3, 1.0  # before a manifest counts as none: a store may have sent half of it, or a page of its own
_KEYS: dict[str, Any] = {
    "run_id": str,
    "identity": dict,
    "branch": int,
    "step": int,
    "epoch": int,
    "epochs": int,
    "best_map": (float, int, type(None)),
    "time": (float, int),
    "replaces": list,
    "files": dict,
}


def parse(text: bytes) -> Manifest | None:
    """Read a manifest; None where it is torn, or none at all."""
    try:
        manifest = {"branch": 0, **json.loads(text)}  # an earlier version of the kit knew no branches
        files = manifest["files"].values()
        good = (
            all(isinstance(manifest[key], kind) and not isinstance(manifest[key], bool) for key, kind in _KEYS.items())
            and all(isinstance(run, str) for run in manifest["replaces"])
            and all(type(entry["size"]) is int and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) for entry in files)
            and re.fullmatch(r"[\w-]+", manifest["run_id"])
            and LATEST in manifest["files"]
            and position(manifest)  # its numbers can be shown
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError):
        return None
    return manifest if good else None


def read(get: Callable[[], bytes], listed: bool) -> Manifest | None:
    """Return the manifest that a store gives, or None where it is none, however often it is asked.

    What the store answers is raised; that there is none, only after the last time for one that it has listed.
    """
    for attempt in range(READS):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            if manifest := parse(get()):
                return manifest
        except Exception as error:
            if not (missing(error) and listed) or attempt == READS - 1:
                raise
    return None


def order(facts: Manifest) -> tuple[int, int]:
    """Return what decides which of two states of a run is further, as `kit.store.checkpoint.Summary.order`."""
    return facts["branch"], facts["step"]


def stored(name: str, manifest: Manifest) -> str:
    """Return the name of a file where none is used twice: `latest-1a2b3c4d5e6f.pt` of `latest.pt`."""
    path = Path(name)
    return f"{path.stem}-{manifest['files'][name]['sha256'][:12]}{path.suffix}"


def position(facts: Manifest) -> str:
    """Say where a checkpoint stands and when it was backed up."""
    best = "" if facts["best_map"] is None else f", best mAP {facts['best_map']:.4f}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["time"]))
    return f"epoch {facts['epoch']}/{facts['epochs']}, step {facts['step']}{best}, of {when}"
