"""How good the best model is: what `python -m kit results` has measured, as HTML and as text."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.dashboard import page
from kit.dashboard.facts import Context, look
from kit.errors import CheckpointError, Stopped
from kit.kaggle.frontend import show
from kit.run import scores
from kit.store.folder import RunFolder

CELLS = 20  # classes that a confusion matrix is drawn for; of more the most frequent confusions are listed
PAIRS = 12


def render(folder: Path) -> tuple[str, str]:
    """Return the results as HTML and as text."""
    values = scores.read(folder)
    facts = look(folder, Context(now=0.0))
    parts = [
        f'<div class="kit-head"><b>Results of best.pt</b><span class="kit-mute">epoch {values["epoch"]}</span>'
        f'<span class="kit-mute">{values["images"]} {_images(values)}</span></div>',
        page.draw_tiles(_tiles(values)),
    ]
    picture = RunFolder(folder).predictions
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(
            f'<div class="kit-name">What it finds on {_images(values)}</div><img class="kit-picture" '
            f'alt="predictions on {_images(values)}" src="data:image/jpeg;base64,{data}">'
        )
    parts.append(page.charts(facts) if facts.rows else "")
    parts.append(f'<div class="kit-charts"><div>{_matrix(values)}</div><div>{_table(values)}</div></div>')
    return page.wrap("".join(parts)), text(values)


def _images(values: dict[str, Any]) -> str:
    return {"train": "training", "test": "test"}.get(values["settings"].get("split"), "validation") + " images"


def _tiles(values: dict[str, Any]) -> list[tuple[str, str, str]]:
    before, found = values.get("before"), []
    for number, (name, value) in enumerate(values["measures"].items()):
        note = ""
        if number == 0 and before:
            change = value - before["map"]
            note = f"{change:+.4f} against {before['map']:.4f}, the best before (epoch {before['epoch']})"
        found.append((name, f"{value:.4f}", note))
    return found


def _table(values: dict[str, Any]) -> str:
    """Draw a line for each class; with what the best model before had, where that was measured."""
    before = (values.get("before") or {}).get("classes") or {}
    columns = list(dict.fromkeys(name for each in values["classes"] for name in each if name != "name"))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["class", *columns, *(["change"] if before else [])])
    lines = []
    for each in values["classes"]:
        name, cells = html.escape(each["name"]), [_write(each.get(column)) for column in columns]
        if before:
            old, new = before.get(each["name"]), each.get(columns[-1])
            cells.append(f"{new - old:+.3f}" if old is not None and new is not None else "–")
        lines.append(f'<tr><td title="{name}">{name}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return (
        '<div class="kit-name">By class</div><div class="kit-scroll"><table class="kit-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _write(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _matrix(values: dict[str, Any]) -> str:
    """Draw the confusion matrix: a row for what there is, a column for what was found, shares of the row."""
    names, matrix = [html.escape(name) for name in values["matrix"]["names"]], values["matrix"]["counts"]
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    if len(names) > CELLS:
        places = ((i, j) for i in range(len(names)) for j in range(len(names)) if i != j and shares[i][j])
        pairs = sorted(((shares[i][j], names[i], names[j]) for i, j in places), reverse=True)[:PAIRS]
        rows = "".join(f"<tr><td>{is_}</td><td>{found}</td><td>{share:.0%}</td></tr>" for share, is_, found in pairs)
        return (
            '<div class="kit-name">Most frequent confusions: what it is, what was found</div>'
            f'<table class="kit-table"><tbody>{rows}</tbody></table>'
        )
    head = "".join(f'<th title="{name}"><span>{name}</span></th>' for name in names)
    rows = ""
    for name, row, counts in zip(names, shares, matrix, strict=True):
        cells = "".join(
            f'<td title="{count:g}" style="background:rgba(74,134,247,{0.85 * share:.2f})">'
            f"{f'{100 * share:.0f}' if share >= 0.005 else ''}</td>"
            for share, count in zip(row, counts, strict=True)
        )
        rows += f"<tr><td>{name}</td>{cells}</tr>"
    return (
        '<div class="kit-name">Confusion matrix: rows are what there is, columns what was found, in percent</div>'
        f'<div class="kit-scroll"><table class="kit-table kit-matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def text(values: dict[str, Any]) -> str:
    """Write what was measured, as `scores.read` returns it, as text."""
    lines = [f"Results of best.pt, epoch {values['epoch']}, {values['images']} {_images(values)}"]
    lines += [f"{name}: {value}" + f" ({note})" * bool(note) for name, value, note in _tiles(values)]
    for each in values["classes"]:
        lines.append("  ".join([each["name"], *(f"{k} {_write(v)}" for k, v in each.items() if k != "name")]))
    return "\n".join(lines)


def show_results(measure: Callable[[], Path]) -> None:
    """Show what was measured of a run's best model, by a call that measures it if need be and returns the folder."""
    name, shown = os.urandom(8).hex(), ("", "")
    show(*page.note("Measuring best.pt on the validation images ..."), name)
    try:
        shown = render(measure())
    except (CheckpointError, Stopped) as error:  # no best.pt yet, or no time for it: nothing to stop a notebook for
        shown = page.note(str(error))
    finally:
        show(*shown, name, update=True)
