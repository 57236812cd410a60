"""Ultralytics' warnings, told as the kit's own: into the log and the notices, each once, without colours and emoji.

`YOLO_VERBOSE=false` keeps Ultralytics silent, its warnings too: while a run trains, a handler of the kit's takes them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ultralytics.utils import LOGGER

SEEN_TO = {  # a part of a text -> why nobody needs it here
    "may produce non-deterministic training results": "a cache of images changes no bit here",
    "Labels are missing or empty in": "the report on the data set says so, and names no cache in scratch",
    "No labels found in": "the same",
    "no labels found in": "the same, and not after each validation",
    "classes (requires": "the same: it counts the images of each class",
    "samples from classes the model lacks": "the same: it names what is left out",
    "renaming data YAML": "it is read as it was meant",
    "Limiting validation plots": "it is about a picture alone",
}
DECORATION = re.compile("\x1b\\[[\\d;]*m|[\u2600-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff]")  # colours, emoji


class Warnings(logging.Handler):
    """Takes what Ultralytics logs in this process; what the same line of its code logs again is the same warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._known: set[tuple[str, int]] = set()
        self._early: list[str] = []
        self._process = os.getpid()
        self._warn: Callable[[str], None] = self._early.append

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it, unless it was told: a loader worker's was when its data set was built."""
        text, place = plain(record.getMessage()), (record.pathname, record.lineno)
        if place in self._known or os.getpid() != self._process or any(part in text for part in SEEN_TO):
            return
        self._known.add(place)
        self._warn(f"Ultralytics: {text}")

    def forward(self, warn: Callable[[str], None]) -> None:
        """Tell what came before there was a status, and from here on what comes."""
        self._warn = warn
        for text in self._early:
            warn(text)


@contextmanager
def listening() -> Iterator[Warnings]:
    """Take Ultralytics' warnings in place of its own handlers."""
    before, LOGGER.handlers = LOGGER.handlers, [handler := Warnings()]
    try:
        yield handler
    finally:
        LOGGER.handlers = before


def plain(text: str) -> str:
    """Return a text of Ultralytics' on one line, without colours and emoji."""
    return " ".join(DECORATION.sub("", text).split())
