"""The dashboard as HTML and as text: pure functions of what there is to show."""

from __future__ import annotations

import html

from kit.dashboard import curves
from kit.dashboard.facts import RUNNING, Facts
from kit.dashboard.style import STYLE
from kit.text import clock

TITLES = {
    "starting": ("Starting", "kit-run"),
    "training": ("Training", "kit-run"),
    "validating": ("Validating", "kit-run"),
    "evaluating": ("Final evaluation", "kit-run"),
    "stopped": ("Stopped, everything is saved", "kit-rest"),
    "finished": ("Finished", "kit-run"),
    "failed": ("Failed", "kit-bad"),
    "gone": ("Interrupted", "kit-bad"),
}
GONE = "The training process is gone. Run the training cell: it goes on from the last checkpoint."


def wrap(body: str) -> str:
    """Put HTML into the kit's frame, with its style."""
    return f'{STYLE}<div class="kit">{body}</div>'


def note(text: str) -> tuple[str, str]:
    """Return a sentence that stands alone, as HTML and as text."""
    return wrap(f'<div class="kit-note">{html.escape(text)}</div>'), text


def render(facts: Facts) -> str:
    """Draw the dashboard as HTML."""
    title, colour = TITLES.get(facts.state, (facts.state, ""))
    elapsed = f"{clock(facts.elapsed_s)} of training" if facts.elapsed_s else ""
    parts = [
        f'<div class="kit-head"><span class="kit-dot {colour}"></span><b>{html.escape(title)}</b>'
        f'<span class="kit-mute">{html.escape(facts.run)}</span><span class="kit-mute">{elapsed}</span></div>',
        _bars(facts),
        draw_tiles(tiles(facts)) if facts.epochs else "",
        f'<div class="kit-error">{html.escape(facts.error)}</div>' if facts.error else "",
        "".join(f'<div class="kit-warn">{html.escape(text)}</div>' for text in facts.warnings),
        charts(facts) if facts.rows or facts.batches else "",
    ]
    lines = "\n".join(filter(None, [*facts.lines, GONE if facts.state == "gone" else ""]))
    parts.append(f'<div class="kit-log">{html.escape(lines)}</div>' if lines else "")
    return wrap("".join(parts))


def _bars(facts: Facts) -> str:
    if not facts.epochs:
        return ""
    each = f"{clock(facts.epoch_s)} an epoch" if facts.epoch_s else ""
    left = f"{clock(facts.left_s)} left" if facts.left_s is not None else ""
    note = ", ".join(filter(None, [each, left]))
    rows = [("Epoch", min(facts.done / facts.epochs, 1), f"{facts.epoch}/{facts.epochs}", note)]
    if facts.batches and facts.state in RUNNING:
        note = "validating" if facts.state == "validating" else ""
        if rate := facts.rate:
            pace = f"{rate:.1f} batches/s" if rate >= 1 else f"{1 / rate:.1f} s a batch"
            note = f"{pace}, {clock(facts.batches_s or 0)} left in this epoch"
        rows.append(("Batch", facts.batch / facts.batches, f"{facts.batch}/{facts.batches}", note))
    marks = "".join(f'<u style="left:{100 * at / facts.epochs:.2f}%"></u>' for at in facts.resumed[-curves.MARKS :])
    return "".join(
        f'<div class="kit-row"><span>{name}</span>'
        f'<div class="kit-bar" role="progressbar" aria-label="{name}" aria-valuenow="{100 * share:.0f}">'
        f'<i style="width:{100 * share:.2f}%"></i>{marks if name == "Epoch" else ""}</div>'
        f'<b>{count}</b><span class="kit-note">{html.escape(note) or "&#160;"}</span></div>'
        for name, share, count, note in rows
    )


def tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """Return what stands in the tiles: name, value and note of each."""
    found = []
    value = f"{facts.current[0]:.4f}" if facts.current else "–"
    note = "after the first validation" if not facts.current else f"epoch {facts.current[1]}"
    if facts.best:
        note += f", best {facts.best[0]:.4f}" + (f" in epoch {facts.best[1]}" if facts.best[1] else "")
        if facts.current and facts.best == facts.current:
            note = f"epoch {facts.current[1]}, the best so far"
    found.append((facts.metric, value, note))
    if facts.session_s is not None:
        note = ""
        if facts.fit is not None and facts.sessions:
            note = f"{_count(facts.fit, 'more epoch')} fit, about {_count(facts.sessions, 'more session')}"
        elif facts.fit is not None:
            note = "enough for all that is left"
        found.append(("Left of this session", clock(facts.session_s), note))
    if facts.saved_s is not None or facts.state in RUNNING:
        age = "none yet" if facts.saved_s is None else f"{clock(facts.saved_s)} ago"
        cost = "a stop costs nothing" if facts.state in RUNNING else ""
        if facts.lost_s is not None:
            cost = f"a kill now would cost {clock(facts.lost_s)}, a stop nothing"
        found.append(("Last checkpoint", age, cost))
    for gpu in facts.gpus:
        load = "–" if gpu.load is None else f"{gpu.load} %"
        found.append((gpu.name, load, f"{gpu.used / 1e9:.1f} of {gpu.total / 1e9:.1f} GB"))
    if "step" in facts.backup or facts.backup.get("problem"):
        place = f"epoch {facts.backup['epoch']}" if "step" in facts.backup else "none yet"
        found.append(("Backup", place, str(facts.backup.get("address", ""))))
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def draw_tiles(found: list[tuple[str, str, str]]) -> str:
    """Draw tiles of name, value and note."""
    cells = "".join(
        f'<div class="kit-tile"><div class="kit-name">{html.escape(name)}</div>'
        f'<div class="kit-value">{html.escape(value)}</div><div class="kit-note">{html.escape(note)}</div></div>'
        for name, value, note in found
    )
    return f'<div class="kit-tiles">{cells}</div>'


def charts(facts: Facts) -> str:
    """Draw the curves of losses and mAP."""
    best = (float(facts.best[1]), facts.best[0]) if facts.best and facts.best[1] else None
    lost = curves.losses(facts.rows, facts.losses, facts.done)
    drawn = curves.chart("Losses", lost, facts.done, facts.resumed)
    drawn += curves.chart("Validation", curves.measures(facts.rows), facts.done, facts.resumed, best)
    return f'<div class="kit-charts">{drawn}</div>'


def text(facts: Facts, messages: bool = True) -> str:
    """Write the dashboard as text, with all that the run said or without."""
    words = [TITLES.get(facts.state, (facts.state,))[0], facts.run]
    if facts.epochs:
        words.append(f"epoch {facts.epoch}/{facts.epochs}")
    if facts.batches and facts.state in RUNNING:
        words.append(f"batch {facts.batch}/{facts.batches}")
    if facts.left_s is not None:
        words.append(f"{clock(facts.left_s)} left")
    lines = ["  ".join(filter(None, words))]
    lines += [f"{name}: {value}" + f" ({note})" * bool(note) for name, value, note in tiles(facts) if facts.epochs]
    lines += [f"error: {facts.error}"] if facts.error else []
    lines += [f"WARNING: {warning}" for warning in facts.warnings]
    lines += facts.messages if messages else ()
    return "\n".join([*lines, GONE] if facts.state == "gone" else lines)
