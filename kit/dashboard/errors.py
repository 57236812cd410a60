"""What an error looks like in a notebook: a red box with the title of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kit.dashboard import page
from kit.dashboard.board import Board
from kit.dashboard.downloads import link
from kit.dashboard.frontend import shell, show, start_folder
from kit.errors import KitError
from kit.kaggle import session
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
FAILED = "Training failed"  # of any other


@contextmanager
def show_errors(board: Board | None = None) -> Iterator[None]:
    """Show one of the kit's errors as a red box in a notebook: what happened, what to do, and the log.

    Args:
        board: Of the run that it is about.
    """
    try:
        yield
    except KitError as error:
        if shell() is not None:
            folder = board.folder if board else None
            log = RunFolder(folder).log if folder else None
            address = link(log, log.name, start_folder(), "Download the whole log") if log and log.exists() else ""
            title, what = TITLES.get(error.kind, FAILED), "\n".join(filter(None, [error.message, error.hint]))
            details = f"\n{error.details}" if error.details else ""
            show(page.box(title, what, error.details, address), f"{title}: {error}{details}")
            error.shown = session.run_type() != "batch"  # whose log has no boxes
        raise
