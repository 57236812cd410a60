"""Progress and downloads in a notebook: widgets where there is a front end, readable text everywhere.

It reads the run's `status.json` and knows nothing of the trainer. Nothing is built on a button's callback: those wait
for the cell to end. A download is an HTML link, relative to the notebook's folder, with the `download` attribute: the
one form that works in every front end while a cell is running.
"""

from __future__ import annotations

import hashlib
import html
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kit import session, status, storage

EVERY_S = 0.5


class Dashboard:
    """Bars for epochs and batches with losses, mAP and time left, above the lines that the run prints.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = 0.0
        self._bars: dict[str, Any] = {}
        if session.run_type() != "batch":  # a batch run stores a widget as it was at first
            self._show()

    def _show(self) -> None:
        import ipywidgets
        from IPython.display import display

        style = {"description_width": "64px"}
        layout = ipywidgets.Layout(width="100%", max_width="640px")
        for name in ("epochs", "batches"):
            self._bars[name] = ipywidgets.IntProgress(description=name, style=style, layout=layout)
        self._bars["text"] = ipywidgets.HTML("<i>starting …</i>")
        display(ipywidgets.VBox(list(self._bars.values())))

    def update(self, *, now: bool = False) -> None:
        """Show what `status.json` says, at most twice a second unless `now` is set."""
        if not self._bars or (time.monotonic() < self._next and not now):
            return
        self._next = time.monotonic() + EVERY_S
        values = status.read(self.folder)
        if not values:
            return
        done, total = values.get("completed", 0), values.get("epochs", 0)
        for name, value, maximum in (("epochs", done, total), ("batches", values.get("batch"), values.get("batches"))):
            self._bars[name].max, self._bars[name].value = maximum or 1, value or 0
        self._bars["text"].value = f"<code>{html.escape(describe(values))}</code>"


def describe(values: dict[str, Any]) -> str:
    """Return a run's progress in one line.

    Args:
        values: As `status.read` returns them.
    """
    words = [str(values.get("state", "no run yet"))]
    if values.get("batches"):
        words.append(f"epoch {values.get('epoch')}/{values['epochs']} batch {values.get('batch')}/{values['batches']}")
    words += [f"{name} {value:.3f}" for name, value in (values.get("losses") or {}).items() if value is not None]
    if values.get("best_map") is not None:
        words.append(f"best mAP {values['best_map']:.4f}")
    left = seconds_left(values)
    if left is not None and values.get("state") in ("training", "validating"):
        words.append(f"about {left / 60:.0f} min left")
    return "  ".join(words)


def seconds_left(values: dict[str, Any]) -> float | None:
    """Estimate how long training still takes, from what it took so far."""
    batches, epochs = values.get("batches"), values.get("epochs")
    if not batches or not epochs or not values.get("elapsed_s"):
        return None
    done = values.get("completed", 0) + (values.get("batch", 0) / batches if values["state"] == "training" else 0)
    return float(values["elapsed_s"]) / done * (epochs - done) if done else None


def downloads(folder: Path) -> None:
    """Show links to `best.pt` and `latest.pt`, with sizes and checksums.

    A link points to a second, immutable name of the file (a hard link): one that is replaced in mid-download still
    arrives whole.
    """
    from IPython.display import display

    lines, rows = [], []
    for name in ("best.pt", "latest.pt"):
        path = folder / "checkpoints" / name
        if not path.exists():
            lines.append(f"{name}: not there yet")
            rows.append(f"<li>{name}: not there yet</li>")
            continue
        copy, digest = _second_name(path)
        facts = f"{copy.stat().st_size / 1e6:.1f} MB, sha256 {digest}"
        link = f'<a href="{quote(os.path.relpath(copy, Path.cwd()))}" download="{name}"><b>{name}</b></a>'
        lines.append(f"{name}: {copy} ({facts})")
        rows.append(f"<li>{link} {facts}</li>")
    display({"text/plain": "\n".join(lines), "text/html": f"<ul>{''.join(rows)}</ul>"}, raw=True)


def _second_name(path: Path) -> tuple[Path, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = storage.make_folder(session.working() / "downloads")
    target = folder / f"{path.stem}-{digest[:8]}.pt"
    for old in folder.glob(f"{path.stem}-*.pt"):
        if old != target:
            old.unlink(missing_ok=True)
    storage.link(path, target)
    return target, digest
