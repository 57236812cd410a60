"""What there is to show of a run, as numbers: `look` reads the files that it keeps, `compute` is pure."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kit.errors import StorageError
from kit.run import status
from kit.store import disk
from kit.store.folder import RunFolder
from kit.text import size

RUNNING = ("starting", "training", "validating", "evaluating")
METRICS = ("metrics/mAP50-95(M)", "metrics/mAP50-95(P)", "metrics/mAP50-95(B)", "metrics/accuracy_top1")
LINES = 6  # of what the run said
NOTICES = 4  # that are shown
RECENT = 5  # epochs that the time of one is taken from
LOW = 500e6  # bytes; below that a disk is said to be nearly full
STALE_S = 60.0  # seconds without news after which it is asked whether the training process still lives

Row = dict[str, float]


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver sees it; `load` in percent, or None where it does not tell."""

    name: str
    used: int
    total: int
    load: int | None


@dataclass(frozen=True)
class Context:
    """What is known of a run beside its files."""

    now: float  # Unix seconds
    since: float = 0.0  # news from before are of an earlier session
    alive: bool = True  # the training process lives, as far as is known
    gpus: tuple[Gpu, ...] = ()
    free: int | None = None  # bytes in the working folder
    backup: str | None = None  # the address that checkpoints are copied to
    remind: int = 0  # epochs between two reminders to take a copy; 0 for never
    lines: tuple[str, ...] = ()  # what the run printed last
    failed: bool = False  # it ended with an error


@dataclass
class Facts:
    """A run at one moment; times in seconds, None for what is not known."""

    state: str  # starting, training, validating, evaluating, stopped, finished, failed, or gone (killed)
    run: str = ""  # the run folder's name
    epoch: int = 0  # counts from 1
    epochs: int = 0
    batch: int = 0  # those that are done
    batches: int = 0
    done: float = 0.0  # epochs, with the part of the current one
    epoch_s: float | None = None  # what an epoch takes
    left_s: float | None = None
    elapsed_s: float | None = None  # what the run has taken in all
    rate: float | None = None  # batches per second in this epoch
    batches_s: float | None = None  # what is left of this epoch
    metric: str = "mAP50-95"  # that `best.pt` goes by
    current: tuple[float, int] | None = None  # that metric with its epoch
    best: tuple[float, int | None] | None = None
    session_s: float | None = None  # left of the session
    fit: int | None = None  # epochs that fit into it
    sessions: int = 0  # to go after this one
    saved_s: float | None = None  # age of the last checkpoint
    lost_s: float | None = None  # work that a kill would cost now
    resumed: tuple[float, ...] = ()  # where the sessions after the first began, in epochs
    losses: dict[str, float | None] = field(default_factory=dict)  # running means of this epoch
    rows: tuple[Row, ...] = ()  # of results.csv
    warnings: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()  # all that the run said in this session
    notices: tuple[dict[str, str], ...] = ()  # what is wrong now: kind, message and hint of each
    error: str = ""  # what ended the run, where no box says so
    gpus: tuple[Gpu, ...] = ()
    backup: dict[str, Any] = field(default_factory=dict)  # of backup.json


def look(folder: Path, context: Context) -> Facts:
    """Say how the run in a folder stands."""
    return compute(status.read(folder), read_rows(folder), disk.read_json(RunFolder(folder).backup), context)


def read_rows(folder: Path) -> tuple[Row, ...]:
    """Return the rows of results.csv, without what is missing or no number; it is read again when it was replaced."""
    path = RunFolder(folder).table
    try:
        return _parse(path, disk.identity(path))
    except (OSError, ValueError):
        return ()


@lru_cache(maxsize=1)
def _parse(path: Path, identity: tuple[int, int, int]) -> tuple[Row, ...]:
    with open(path, encoding="utf-8", newline="") as file:
        return tuple(
            {name.strip(): value for name, text in row.items() if (value := _number(text)) is not None}
            for row in csv.DictReader(file)
        )


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def compute(values: dict[str, Any], rows: tuple[Row, ...], backup: dict[str, Any], context: Context) -> Facts:
    """Work out what there is to show, from what is in `status.json`, `results.csv` and `backup.json`."""
    fresh = bool(values) and values.get("updated", 0) >= context.since
    told = values if fresh else {}
    state = str(told.get("state", "starting"))
    if context.failed:
        state = "failed"
    elif state in RUNNING and not context.alive:
        state = "gone"
    messages = tuple(told.get("messages") or ())
    facts = Facts(
        state=state,
        run=str(values.get("run", "")),
        epochs=int(values.get("epochs") or 0),
        resumed=tuple(values.get("sessions") or ()),
        rows=rows,
        lines=context.lines or messages[-LINES:],
        messages=messages,
        notices=tuple(told.get("notices") or ()),
        error=sentence(values) if state == "failed" and not context.failed else "",
        gpus=context.gpus,
        backup=backup,
        epoch_s=_epoch_s(rows),
    )
    _measure(facts, values)
    if fresh:
        _place(facts, values)
        _times(facts, values, context.now)
    elif rows:
        facts.epoch, facts.elapsed_s = int(rows[-1].get("epoch", 0)), rows[-1].get("time")
        facts.done = float(facts.epoch)
    facts.warnings = tuple(_warnings(facts, context))
    return facts


def sentence(notice: dict[str, Any]) -> str:
    """Write a notice, or what ended a run: what happened and what to do."""
    return " ".join(str(notice[name]) for name in ("message", "hint") if notice.get(name))


def _place(facts: Facts, values: dict[str, Any]) -> None:
    facts.epoch, facts.batch, facts.batches = (int(values.get(name) or 0) for name in ("epoch", "batch", "batches"))
    if not facts.batches:  # nothing was trained in this session
        facts.epoch = int(values.get("completed") or (facts.rows[-1].get("epoch", 0) if facts.rows else 0))
        facts.batch, facts.done = 0, float(facts.epoch)
        return
    if facts.state == "validating":
        facts.batch = facts.batches  # the last one may not have been told
    facts.losses = values.get("losses") or {}
    facts.done = facts.epoch - 1 + facts.batch / facts.batches


def _epoch_s(rows: tuple[Row, ...]) -> float | None:
    """Return what an epoch takes: the median of the last ones, by the clock that goes on over sessions."""
    times = [0.0, *(row["time"] for row in rows if "time" in row)][-RECENT - 1 :]
    taken = [later - earlier for earlier, later in itertools.pairwise(times) if later > earlier]
    return statistics.median(taken) if taken else None


def _times(facts: Facts, values: dict[str, Any], now: float) -> None:
    facts.elapsed_s = elapsed = values.get("elapsed_s")
    if elapsed and facts.done:
        facts.epoch_s = facts.epoch_s or elapsed / facts.done
    spent = elapsed - (facts.rows[-1].get("time", 0.0) if facts.rows else 0.0) if elapsed else 0.0
    if facts.state == "training" and 0 < facts.batch < facts.batches and spent > 0:
        facts.rate = facts.batch / spent
        facts.batches_s = (facts.batches - facts.batch) / facts.rate
    if saved := (values.get("checkpoint") or {}).get("time"):
        facts.saved_s = max(now - saved, 0.0)
    if facts.state in ("training", "validating"):
        facts.lost_s = facts.saved_s
        facts.left_s = max(facts.epochs - facts.done, 0) * facts.epoch_s if facts.epoch_s else None
    if facts.state in RUNNING and (ends := values.get("session_ends")):
        facts.session_s = max(ends - now, 0.0)
        usable = max((values.get("session_leaves") or ends) - now, 0.0)  # training leaves the session before its end
        if facts.epoch_s and facts.left_s is not None:
            facts.fit = min(int(usable / facts.epoch_s + facts.done % 1), math.ceil(facts.epochs - facts.done))
            if (more := facts.left_s - usable) > 0:
                facts.sessions = math.ceil(more / (values.get("session_s") or math.inf)) or 1


def _measure(facts: Facts, values: dict[str, Any]) -> None:
    """Find the last and the best of the measure that `best.pt` goes by, with their epochs."""
    name = next((name for name in METRICS if any(name in row for row in facts.rows)), METRICS[2])
    facts.metric = name.removeprefix("metrics/").partition("(")[0].replace("accuracy_top1", "top-1 accuracy")
    found = [(row[name], int(row["epoch"])) for row in facts.rows if name in row and "epoch" in row]
    if found:
        facts.current, facts.best = found[-1], max(found, key=lambda each: (each[0], -each[1]))
    told = values.get("best_map")
    if told is not None and name != METRICS[3] and (facts.best is None or abs(facts.best[0] - told) > 1e-4):
        facts.best = told, None  # best.pt had gone: it holds the best since then


def _warnings(facts: Facts, context: Context) -> Iterable[str]:
    for notice in facts.notices[-NOTICES:]:
        yield sentence(notice)
    if facts.backup.get("problem"):
        yield f"The last backup failed: {facts.backup['problem']}"
    full = any(notice.get("kind") == StorageError.kind for notice in facts.notices)  # which says more
    if context.free is not None and context.free < LOW and not full:
        yield f"The working folder has only {size(context.free)} left: delete files that you do not need."
    epochs, every = int(facts.done), 0 if context.backup else context.remind
    if facts.state in RUNNING and every and epochs >= every and epochs % every < max(every // 5, 1):
        yield (
            f"Epoch {epochs}: a good moment to download best.pt and latest.pt, below. There is no backup (kit.backup), "
            "and Kaggle keeps files only if it was asked to."
        )
