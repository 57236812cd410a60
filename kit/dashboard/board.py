"""The dashboard of a running cell: one display that is updated in place, and the downloads in one of their own.

In a notebook's kernel the two are updated through their `display_id`, which every front end shows while the cell runs,
which leaves one output in the saved file however long training took, and which works for a batch run's file too.
Widgets are not needed: their values are lost in a batch run, and relative links fail in them. The downloads change
rarely, so that nobody's click meets a link that is just being replaced.

In a batch run and in a terminal nothing is updated: the run's own lines are printed, and a batch run gets one last
card. `progress.html` in the run folder is the same dashboard as a page of its own: a notebook that was reloaded gets no
updates while the cell runs. A new tab keeps it up to date under Jupyter Server; elsewhere it is reloaded by hand.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kit.config import Config
from kit.dashboard import gpus, page
from kit.dashboard.downloads import Downloads, render
from kit.dashboard.facts import LINES, STALE_S, Context, look
from kit.errors import StorageError
from kit.kaggle import session
from kit.kaggle.frontend import shell, show
from kit.store import disk
from kit.store.folder import RunFolder

EVERY_S = 1.0  # seconds between two updates of the display
PAGE_S = 5.0  # the same for progress.html, which reloads itself
FREE_S = 60.0  # seconds between two looks at the free space


class Board:
    """What a training cell shows from its start to its end.

    Its mode is `live` in a notebook's kernel, `batch` in a batch run (lines, and one card at the end) and `lines` where
    there is no front end.
    """

    def __init__(self, mode: str | None = None, show: Callable[..., None] = show) -> None:
        here = "lines" if shell() is None else "batch" if session.run_type() == "batch" else "live"
        self.mode, self._show = mode or here, show
        self.folder: Path | None = None
        self._lines: deque[str] = deque(maxlen=LINES)
        self._rest = ""
        self._since = time.time()
        self._next: dict[str, float] = {}
        self._id, self._shown = os.urandom(8).hex(), set[str]()
        self._free: int | None = None
        self._broken = False

    def follow(self, text: str, config: Config) -> None:
        """Take up what the run has printed, and show where it stands; `launch.run` calls this ten times a second."""
        if self.folder is None:
            self.folder, self._settings = config.run_folder, config.kit
            self._guarded(self._open)
        if self.mode != "live" or self._broken:
            print(text, end="", flush=True)
            return
        *lines, self._rest = (self._rest + text).split("\n")
        self._lines.extend(filter(None, lines))
        self._guarded(self._update)

    def close(self, failed: bool = False) -> None:
        """Show how it ended."""
        if self.folder is not None and self.mode != "lines":
            self._guarded(lambda: self._finish(failed))

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do something that is not worth a training: where it fails, the run's own lines are printed from there."""
        try:
            if not self._broken:
                action()
        except Exception as error:  # whatever it is
            self._broken = True
            print(f"WARNING: The dashboard failed ({error!r}); training goes on without it.", flush=True)

    def _due(self, name: str, every: float) -> bool:
        if time.monotonic() < self._next.get(name, 0.0):
            return False
        self._next[name] = time.monotonic() + every
        return True

    def _open(self) -> None:
        assert self.folder is not None
        self._downloads = Downloads(self.folder, second_names=self.mode == "live")
        if self.mode == "live":
            self._library = gpus.open_library()
            self._draw()
            self._put("files", *render(self._downloads))

    def _update(self) -> None:
        if self._due("display", EVERY_S):
            self._draw()
        if self._downloads.poll():
            self._put("files", *render(self._downloads))

    def _finish(self, failed: bool) -> None:
        if self.mode != "live":
            self._downloads.clear()
        if not self._downloads.settle() and failed:  # before the first checkpoint: the error's box says it all
            for name in sorted(self._shown):
                self._put(name, "", "")
            return
        self._draw(last=True, failed=failed)
        self._put("files", *render(self._downloads))

    def _put(self, name: str, html: str, text: str) -> None:
        """Show something, in the place of what was shown under that name."""
        self._show(html, text, f"{self._id}-{name}", name in self._shown)
        self._shown.add(name)

    def _draw(self, last: bool = False, failed: bool = False) -> None:
        assert self.folder is not None
        if self._due("free", FREE_S):
            self._free = session.free(session.working())
        context = Context(
            now=time.time(),
            since=self._since,
            gpus=() if last else gpus.look(self._library),
            free=self._free,
            backup=self._settings.backup,
            remind=self._settings.remind_epochs,
            lines=() if last else tuple(self._lines),
            failed=failed,
        )
        facts, live = look(self.folder, context), self.mode == "live"
        html = page.render(facts)
        self._put("board", html, page.text(facts, messages=live))
        if live and (self._due("page", PAGE_S) or last):
            again = not last and "JPY_SESSION_NAME" in os.environ  # Notebook 6 turns pages that reload themselves away
            with suppress(StorageError):  # a full disk has a warning of its own
                write_page(RunFolder(self.folder).page, html, again)


def write_page(path: Path, html: str, reload: bool) -> None:
    """Write the dashboard as a page of its own, which may reload itself."""
    again = f'<meta http-equiv="refresh" content="{PAGE_S:.0f}">' if reload else ""
    head = f'<!doctype html><meta charset="utf-8">{again}<meta name="viewport" content="width=device-width">'
    style = "<style>:root{color-scheme:light dark}body{margin:24px auto;max-width:980px;padding:0 16px}</style>"
    text = f"{head}<title>Training</title>{style}{html}\n".encode()
    disk.publish(path, lambda file: file.write(text), durable=False)


class Progress(dict[str, Any]):
    """What a run last said, as `status.read` returns it; a notebook shows it as the dashboard."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._folder = folder

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        lives = _alive(self) or time.time() - self.get("updated", 0.0) < STALE_S
        facts = look(self._folder, Context(now=time.time(), alive=lives))
        html, text = page.render(facts), page.text(facts)
        if not self and not facts.rows:
            html, text = page.note(f"There is no run in {self._folder} yet.")
        return {"text/plain": text, "text/html": html}


def _alive(values: dict[str, Any]) -> bool:
    """Tell whether the process that wrote a status lives on this machine."""
    try:
        return b"kit" in Path(f"/proc/{int(values['pid'])}/cmdline").read_bytes()
    except (OSError, KeyError, TypeError, ValueError):
        return False
