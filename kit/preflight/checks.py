"""What `kit.preflight.report` looks at, one function each: a level, what was found, and what to do about it.

`stop` is what training would stop at, `warning` what costs time or results, `ok` the rest.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kit.kaggle import machine, session
from kit.store.disk import Disk, make_folder, make_room

OK, WARNING, STOP = "ok", "warning", "stop"
SHORT_S = 30 * 60.0  # of a session, which is hardly worth starting in
LITTLE_ROOM = 3 * 10**9  # bytes: the four checkpoints of the largest model
SHARED_ROOM = 10 * 10**9  # bytes of a disk that holds working folder and scratch
LITTLE_MEMORY = 2 * 10**9  # bytes: torch and a small training
LITTLE_SHARED = 10**9  # bytes: eight workers with two batches each of 16 images of 640 pixels take 0.3 GB

Verdict = tuple[str, str, str]  # level, text, advice


def place() -> Verdict:
    """Kaggle or not, interactive or batch."""
    return OK, f"Kaggle, {session.run_type()} session" if session.on_kaggle() else "not Kaggle", ""


def time_left(hours: float | str) -> Verdict:
    """How old the session is, and how long it still has."""
    end, now = session.deadline(hours), time.time()
    if end is None:
        return OK, "no limit", ""
    left = max(end - now, 0.0)
    text = f"{_clock(now - session.started())} since the session's start, {_clock(left)} left"
    if left < SHORT_S:
        return WARNING, text, "Start a new session; training in this one saves and stops before its end."
    return OK, text, ""


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"


def persistence() -> Verdict | None:
    """What is left of the working folder after the session."""
    if not session.on_kaggle():
        return None
    if session.run_type() == "batch":
        return OK, "the output is kept when the run finishes; training stops before the limit so that it does", ""
    return WARNING, "cannot be seen from here", "Choose Persistence: Files only in Session options before it ends."


def compute(root: Path) -> Verdict:
    """Cores and memory."""
    total, available = machine.memory(root)
    text = f"{machine.cores(root):g} cores, {total / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB available"
    if available < LITTLE_MEMORY:
        return WARNING, text, "End what else is running, or lower batch and workers."
    return OK, text, ""


def shared_memory(folder: Path, disk: Disk) -> Verdict | None:
    """Where loader workers put their batches."""
    if not folder.is_dir():
        return None
    free = disk.free(folder)
    text = f"{free / 1e9:.1f} GB free for the batches of loader workers"
    if free < LITTLE_SHARED:
        return WARNING, text, "Set workers=0, or give the container more (docker: --shm-size)."
    return OK, text, ""


def working(disk: Disk) -> Verdict:
    """The folder that is kept: it has to be there, to be writable and to have room."""
    text, free = _room(session.working(), disk)
    if free < LITTLE_ROOM:
        return WARNING, text, "Delete files that you do not need: the four checkpoints of a large model take 3 GB."
    return OK, text, ""


def scratch(disk: Disk) -> Verdict:
    """The folder of what may be lost."""
    folder, kept = session.scratch(), session.working()
    text, free = _room(folder, disk)
    if free < SHARED_ROOM and kept.exists() and kept.stat().st_dev == folder.stat().st_dev:
        text += ", on the disk of the working folder"
        return WARNING, text, "Set KIT_SCRATCH to another disk: what is cached here takes room from the checkpoints."
    if free < LITTLE_ROOM:
        return WARNING, text, "Set KIT_SCRATCH to a larger disk: downloads and decoded images go there."
    return OK, text, ""


def _room(folder: Path, disk: Disk) -> tuple[str, int]:
    make_room(make_folder(folder), 0, disk)
    free = disk.free(folder)
    return f"{folder}, {free / 1e9:.1f} GB free", free


def online(reached: bool) -> Verdict:
    """The internet, which only downloads need."""
    if reached:
        return OK, "on", ""
    way = "Switch it on in Session options, or attach" if session.on_kaggle() else "Attach"
    text = "off: no download of a model by its name (model=yolo11n.pt) or of packages; a resume needs neither"
    return WARNING, text, f"{way} the model's .pt file and give its path as model=, and packages as wheels."


def torch_itself(facts: dict[str, Any]) -> Verdict:
    """Whether torch can be imported at all.

    Args:
        facts: As `kit.preflight.report.probing` has them.
    """
    if "torch" in facts:
        return OK, facts["torch"], ""
    if facts["exit"]:
        return STOP, f"cannot be used: {facts['error']}", "Run the first cell, or pip install -r requirements.txt."
    return WARNING, f"could not be asked: {facts['error']}", "Look again; if it stays so, restart the session."


def start(facts: dict[str, Any]) -> Verdict | None:
    """What training would start with, by its own checks; nothing where the probe did not get so far.

    Args:
        facts: As `kit.preflight.report.probing` has them.
    """
    if "start" not in facts:
        return None
    if "kind" in facts["start"]:
        return STOP, facts["start"]["message"], facts["start"]["hint"]
    return OK, "{task}: {model} on {data}, {classes} classes".format(**facts["start"]), ""


def gpus(names: list[str], facts: dict[str, Any], device: Any = None, processes: Any = "auto") -> Verdict:
    """The GPUs, and whether this torch has kernels for them.

    Args:
        names: As the driver gives them.
        facts: As `kit.preflight.report.probing` has them.
        device: The setting.
        processes: The setting.
    """
    names = names or [gpu["name"] for gpu in facts.get("gpus", ())]
    text = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in Counter(names).items())
    if not names and session.on_kaggle():
        advice = "Choose the accelerator GPU T4 x2 in Session options (a TPU is not used)."
        return WARNING, "none: training runs on the CPU", advice
    if not names or str(device) == "cpu":
        return OK, f"{text or 'none'}: training runs on the CPU", ""
    if "gpus" not in facts:
        return WARNING, f"{text}; whether torch has kernels for it is not known", "See what is said of torch."
    if facts["cuda"] is None:
        text += f", but torch {facts['torch']} is built for the CPU: training runs there"
        return WARNING, text, "Restart the session for Kaggle's own torch, or install one that is built for CUDA."
    if not facts["gpus"]:
        text += f", but torch {facts['torch']} sees none: training runs on the CPU"
        return WARNING, text, "Restart the session, or look at the driver's version and CUDA_VISIBLE_DEVICES."
    good = [str(number) for number, gpu in enumerate(facts["gpus"]) if gpu["kernels"]]
    every = range(1 if processes == 1 else len(facts["gpus"]))
    used = {int(number) for number in re.findall(r"(?<![-\d])\d+", str(device))} or every
    for gpu in (gpu for number, gpu in enumerate(facts["gpus"]) if number in used):
        if gpu["problem"] and gpu["kernels"]:
            return WARNING, gpu["problem"], gpu["hint"]
        if gpu["problem"]:
            return STOP, gpu["problem"], gpu["hint"] + (f" Or device={','.join(good)}." if good else "")
    return OK, f"{text}, and torch has kernels for {'them' if len(names) > 1 else 'it'}", ""


def checkpoints(facts: dict[str, Any]) -> Verdict:
    """What there is to go on from; whether it belongs to the settings is for training to say.

    Args:
        facts: As `kit.preflight.report.probing` has them.
    """
    advice = "List them with python -m kit find."
    if "checkpoints" not in facts:
        return WARNING, f"could not be looked for: {facts['error']}", advice
    good = [found for found in facts["checkpoints"] if found["summary"]]
    bad = [found for found in facts["checkpoints"] if not found["summary"]]
    text = f"{good[0]['position']} in {good[0]['path']}" if good else "none: training starts at the beginning"
    if bad:
        return WARNING, f"{text}; not used: {bad[0]['problem']}", f"{bad[0]['hint']} {advice}".lstrip()
    copies = {Path(found["path"]).parent for found in good if _instant(found) == _instant(good[0])}
    if len(copies) > 1:
        return WARNING, f"{text}, and {len(copies) - 1} more of the same", "Detach or delete those that are not needed."
    return OK, text, ""


def _instant(found: dict[str, Any]) -> tuple[str, int, int]:
    return found["summary"]["run_id"], found["summary"].get("branch", 0), found["summary"]["global_step"]
