"""What there is to show of a run, as numbers: a pure function of the files that it keeps."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from kit.dashboard.files import Files, Row
from kit.errors import StorageError
from kit.text import size

RUNNING = ("starting", "training", "validating", "evaluating")
METRICS = ("metrics/mAP50-95(M)", "metrics/mAP50-95(P)", "metrics/mAP50-95(B)", "metrics/accuracy_top1")
LINES = 6  # of what the run said
NOTICES = 4  # that are shown
RECENT = 5  # epochs that the time of one is taken from
LOW = 500e6  # bytes; below that a disk is said to be nearly full
STALE_S = 60.0  # seconds without news after which it is asked whether the training process still lives


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver sees it; `load` in percent, or None where it does not tell."""

    name: str
    used: int
    total: int
    load: int | None


@dataclass(frozen=True)
class Context:
    """What is known of a run beside its files.

    Attributes:
        now: The time, in Unix seconds.
        since: News from before are of an earlier session.
        alive: Whether the training process lives, as far as is known.
        gpus: What there is.
        free: Bytes free in the working folder, or None.
        backup: The address that checkpoints are copied to, or None.
        remind: Epochs between two reminders to take a copy; 0 for never.
        lines: What the run printed last.
        failed: It ended with an error.
    """

    now: float
    since: float = 0.0
    alive: bool = True
    gpus: tuple[Gpu, ...] = ()
    free: int | None = None
    backup: str | None = None
    remind: int = 0
    lines: tuple[str, ...] = ()
    failed: bool = False


@dataclass(frozen=True)
class Facts:
    """A run at one moment; times in seconds, None for what is not known.

    Attributes:
        state: starting, training, validating, evaluating, stopped, finished, failed, or gone (killed).
        run: The run folder's name.
        epoch, epochs, batch, batches: Where it stands; `epoch` counts from 1, `batch` those that are done.
        done: Epochs that are done, with the part of the current one.
        epoch_s, left_s, elapsed_s: What an epoch takes, what is left, what the run has taken in all.
        rate, batches_s: Batches per second in this epoch, and what is left of it.
        metric: Name of the measure that `best.pt` goes by.
        current, best: That measure with its epoch.
        session_s, fit, sessions: Left of the session; epochs that fit; sessions to go after this one.
        saved_s, lost_s: Age of the last checkpoint, and seconds of work that a kill would cost now.
        cost_percent: What checkpoints cost so far, of the time.
        resumed: Where the sessions after the first began, in epochs.
        losses: Running means of this epoch.
        rows: Of results.csv.
        warnings, lines: To be shown.
        messages: All that the run said in this session.
        notices: What is wrong now: kind, message and hint of each.
        error: What ended the run, where no box says so.
        gpus: What there is.
        backup: What `backup.json` says.
    """

    state: str
    run: str = ""
    epoch: int = 0
    epochs: int = 0
    batch: int = 0
    batches: int = 0
    done: float = 0.0
    epoch_s: float | None = None
    left_s: float | None = None
    elapsed_s: float | None = None
    rate: float | None = None
    batches_s: float | None = None
    metric: str = "mAP50-95"
    current: tuple[float, int] | None = None
    best: tuple[float, int | None] | None = None
    session_s: float | None = None
    fit: int | None = None
    sessions: int = 0
    saved_s: float | None = None
    lost_s: float | None = None
    cost_percent: float | None = None
    resumed: tuple[float, ...] = ()
    losses: dict[str, float | None] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    warnings: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    notices: tuple[dict[str, str], ...] = ()
    error: str = ""
    gpus: tuple[Gpu, ...] = ()
    backup: dict[str, Any] = field(default_factory=dict)


def look(files: Files, context: Context) -> Facts:
    """Say how a run stands.

    Args:
        files: Of the run.
        context: What is known beside them.
    """
    return compute(files.status(), files.rows(), files.backup(), context)


def compute(values: dict[str, Any], rows: tuple[Row, ...], backup: dict[str, Any], context: Context) -> Facts:
    """Work out what there is to show.

    Args:
        values: As `status.read` returns them.
        rows: Of results.csv.
        backup: Of backup.json.
        context: What is known beside them.
    """
    fresh = bool(values) and values.get("updated", 0) >= context.since
    state = str(values.get("state", "starting")) if fresh else "starting"
    if context.failed:
        state = "failed"
    elif state in RUNNING and not context.alive:
        state = "gone"
    messages = tuple(values.get("messages") or ()) if fresh else ()
    facts = Facts(
        state=state,
        run=str(values.get("run", "")),
        epochs=int(values.get("epochs") or 0),
        resumed=tuple(values.get("sessions") or ()),
        rows=rows,
        lines=context.lines or messages[-LINES:],
        messages=messages,
        notices=tuple(values.get("notices") or ()) if fresh else (),
        error=sentence(values) if state == "failed" and not context.failed else "",
        gpus=context.gpus,
        backup=backup,
        **_measures(values, rows),
    )
    if fresh:
        facts = replace(facts, **_place(values, rows))
        facts = replace(facts, **_times(values, rows, facts, context))
    elif rows:
        epoch = int(rows[-1].get("epoch", 0))
        facts = replace(facts, epoch=epoch, done=float(epoch), epoch_s=_epoch_s(rows), elapsed_s=rows[-1].get("time"))
    return replace(facts, warnings=tuple(_warnings(facts, context)))


def sentence(notice: dict[str, Any]) -> str:
    """Write a notice, or what ended a run: what happened and what to do."""
    return " ".join(str(notice[name]) for name in ("message", "hint") if notice.get(name))


def _place(values: dict[str, Any], rows: tuple[Row, ...]) -> dict[str, Any]:
    epoch, batch, batches = (int(values.get(name) or 0) for name in ("epoch", "batch", "batches"))
    if not batches:  # nothing was trained in this session
        epoch = int(values.get("completed") or (rows[-1].get("epoch", 0) if rows else 0))
        return {"epoch": epoch, "done": float(epoch)}
    if values.get("state") == "validating":
        batch = batches  # the last one may not have been told
    losses = values.get("losses") or {}
    done = epoch - 1 + batch / batches
    return {"epoch": epoch, "batch": batch, "batches": batches, "done": done, "losses": losses}


def _epoch_s(rows: tuple[Row, ...]) -> float | None:
    """Return what an epoch takes: the median of the last ones, by the clock that goes on over sessions."""
    times = [0.0, *(row["time"] for row in rows if "time" in row)][-RECENT - 1 :]
    taken = [later - earlier for earlier, later in itertools.pairwise(times) if later > earlier]
    return statistics.median(taken) if taken else None


def _times(values: dict[str, Any], rows: tuple[Row, ...], facts: Facts, context: Context) -> dict[str, Any]:
    elapsed, running = values.get("elapsed_s"), facts.state in RUNNING
    epoch_s = _epoch_s(rows) or (elapsed / facts.done if elapsed and facts.done else None)
    times: dict[str, Any] = {"elapsed_s": elapsed, "epoch_s": epoch_s, "cost_percent": values.get("cost_percent")}
    spent = elapsed - (rows[-1].get("time", 0.0) if rows else 0.0) if elapsed else 0.0
    if running and facts.state == "training" and facts.batch and facts.batch < facts.batches and spent > 0:
        times["rate"] = facts.batch / spent
        times["batches_s"] = (facts.batches - facts.batch) / times["rate"]
    if facts.state in ("training", "validating") and epoch_s:
        times["left_s"] = max(facts.epochs - facts.done, 0) * epoch_s
    saved = (values.get("checkpoint") or {}).get("time")
    if saved:
        times["saved_s"] = max(context.now - saved, 0.0)
    if facts.state in ("training", "validating"):
        times["lost_s"] = times.get("saved_s")
    if running and values.get("session_ends"):
        times |= _session(values, facts, times, context.now)
    return times


def _session(values: dict[str, Any], facts: Facts, times: dict[str, Any], now: float) -> dict[str, Any]:
    """Work out what fits into the session: training leaves it before its end."""
    usable = max((values.get("session_leaves") or values["session_ends"]) - now, 0.0)
    session: dict[str, Any] = {"session_s": max(values["session_ends"] - now, 0.0)}
    if times.get("epoch_s") and times.get("left_s") is not None:
        part = facts.done - int(facts.done)
        session["fit"] = min(int(usable / times["epoch_s"] + part), math.ceil(facts.epochs - facts.done))
        if (more := times["left_s"] - usable) > 0:
            session["sessions"] = math.ceil(more / (values.get("session_s") or math.inf)) or 1
    return session


def _measures(values: dict[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """Find the last and the best of the measure that `best.pt` goes by, with their epochs."""
    rows = list(rows)
    name = next((name for name in METRICS if any(name in row for row in rows)), METRICS[2])
    found = [(row[name], int(row["epoch"])) for row in rows if name in row and "epoch" in row]
    label = name.removeprefix("metrics/").partition("(")[0].replace("accuracy_top1", "top-1 accuracy")
    best: tuple[float, int | None] | None = max(found, key=lambda each: (each[0], -each[1]), default=None)
    told = values.get("best_map")
    if told is not None and name != METRICS[3] and (best is None or abs(best[0] - told) > 1e-4):
        best = told, None  # best.pt had gone: it holds the best since then
    return {"metric": label, "current": found[-1] if found else None, "best": best}


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
