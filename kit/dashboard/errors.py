"""What an error looks like in a notebook: a red box with the title of its kind."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager

from kit.dashboard import page
from kit.dashboard.board import Board
from kit.dashboard.downloads import link
from kit.errors import KitError
from kit.kaggle import session
from kit.kaggle.frontend import on_colab, shell, show
from kit.store.folder import RunFolder

TITLES = {  # of an error's box, by its kind
    "input": "Something has to be corrected first",
    "config": "A setting has to be corrected first",
    "data": "The data set cannot be used",
    "model": "The model cannot be used",
    "checkpoint": "The checkpoint cannot be used",
    "mismatch": "The checkpoint belongs to other settings",
    "storage": "The disk cannot take what has to be written",
    "moved": "The run folder was moved",
    "busy": "The run is in use",
    "lost": "Another training process has ended",
    "died": "A part of training was killed",
    "memory": "Memory is full",
    "stopped": "Stopped",
}


@contextmanager
def show_errors(board: Board | None = None) -> Iterator[None]:
    """Show one of the kit's errors, with the log of the run on the board, as a red box in a notebook."""
    try:
        yield
    except KitError as error:
        if shell() is not None:
            log, address = RunFolder(board.folder).log if board and board.folder else None, ""
            if log and log.exists() and not on_colab():
                address = link(log, log.name, "Download the whole log")
            title, details = TITLES.get(error.kind, "Training failed"), f"\n{error.details}" if error.details else ""
            show(_box(title, error, address), f"{title}: {error}{details}")
            error.shown = session.run_type() != "batch"  # whose log has no boxes
        raise


def _box(title: str, error: KitError, log: str) -> str:
    """Draw what happened, what to do, the end of the log and a link to all of it."""
    lines = [line for text in (error.message, error.hint) for line in text.splitlines()]
    paragraphs = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
    details = html.escape(re.sub(r"\x1b\[[0-9;]*m", "", error.details))  # without a terminal's colours
    more = f"<details><summary>The end of the log</summary><pre>{details}</pre></details>" if details else ""
    return page.wrap(f'<div class="kit-error"><b>{html.escape(title)}</b>{paragraphs}{more}{log}</div>')
