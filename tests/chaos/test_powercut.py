"""A power cut at any moment of a save, with the writes in any order: a file system keeps only what was synced.

A disk records what the writer does to it. For each moment, each subset of what was not synced by then (pages of 4 KB,
and names) is laid out as the files that would be found: every name must hold a whole checkpoint, and none older than
the writer has said to be on the disk.

Not covered: a disk that acknowledges an fsync and loses the data all the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from kit.store import disk as storage
from kit.store.disk import Disk
from kit.store.folder import BEST, LATEST, PREVIOUS
from kit.store.writer import Writer
from tests.store.test_writer import save, step

PAGE = 4096
Names = dict[str, int | None]  # name -> number of the file; None where the name goes


@dataclass
class Change:
    """A page of a file, or names that change in one step.

    Attributes:
        file: Number of the file; 0 for names.
        page: Number of the page in it.
        content: Of the page, or the names.
        synced: Whether a sync has come after it.
    """

    file: int
    page: int
    content: bytes | Names
    synced: bool = False


class RecordingDisk(Disk):
    """Does what a disk does, and keeps each change in its order.

    Args:
        links: Whether it knows second names.
        ignored: A kind of sync that it does not carry out.
        room: For so many files.
    """

    def __init__(self, links: bool = True, ignored: str = "", room: int = 9) -> None:
        self.links, self.ignored, self.room = links, ignored, room
        self.changes: list[Change] = []
        self.names: dict[str, int] = {}
        self.moments: list[Callable[[], None]] = []
        self.files = 0

    def open(self, path: Path, direct: bool = False) -> BinaryIO:
        self.files += 1
        self._name({path.name: self.files})
        return _File(open(path, "wb"), self, self.files)  # type: ignore[return-value]

    def write(self, file: int, offset: int, data: bytes) -> None:
        """Take bytes, page by page; a page that is written into again is another change."""
        while data:
            page, start = divmod(offset, PAGE)
            before = next((c.content for c in reversed(self.changes) if (c.file, c.page) == (file, page)), b"")
            assert isinstance(before, bytes)
            piece, data = data[: PAGE - start], data[PAGE - start :]
            self._change(Change(file, page, before[:start].ljust(start, b"\0") + piece + before[start + len(piece) :]))
            offset += len(piece)

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        self._sync("sync", file.number)  # type: ignore[attr-defined]

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self._sync("sync_folder", 0)

    def link(self, source: Path, target: Path) -> None:
        if not self.links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        super().link(source, target)
        self._name({target.name: self.names[source.name]})

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        number = self.names[source.name]
        if self.names.get(target.name) != number:  # two names of one file: it stays as it is
            self._name({target.name: number, source.name: None})

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        if path.name in self.names:
            self._name({path.name: None})

    def free(self, folder: Path) -> int:
        return 1 << 40 if len({*self.names.values()}) < self.room else 0

    def _name(self, names: Names) -> None:
        for name, number in names.items():
            self.names.pop(name, None)
            if number is not None:
                self.names[name] = number
        self._change(Change(0, 0, names))

    def _change(self, change: Change) -> None:
        self.changes.append(change)
        self._moment()

    def _sync(self, kind: str, file: int) -> None:
        if kind != self.ignored:
            for change in self.changes:
                change.synced |= change.file == file
        self._moment()

    def _moment(self) -> None:
        for call in self.moments:
            call()

    def layouts(self) -> Iterator[dict[str, bytes]]:
        """Yield the files that may be found if the power goes now."""
        open_ones = [number for number, change in enumerate(self.changes) if not change.synced]
        assert len(open_ones) <= 16, "too many to try each subset"
        for kept in product((False, True), repeat=len(open_ones)):
            left_out = {number for number, keep in zip(open_ones, kept, strict=True) if not keep}
            names: dict[str, int] = {}
            pages: dict[int, dict[int, bytes]] = {}
            for number, change in enumerate(self.changes):
                if number in left_out:
                    continue
                if isinstance(change.content, bytes):
                    pages.setdefault(change.file, {})[change.page] = change.content
                    continue
                for name, file in change.content.items():
                    names.pop(name, None)
                    if file is not None:
                        names[name] = file
            yield {name: _joined(pages.get(file, {})) for name, file in names.items()}


class _File:
    """A file whose bytes go to the record when they go to the disk."""

    def __init__(self, file: Any, disk: RecordingDisk, number: int) -> None:
        self.file, self.disk, self.number, self.waiting, self.offset = file, disk, number, b"", 0

    def write(self, data: Any) -> int:
        self.waiting += bytes(data)
        return int(self.file.write(data))

    def flush(self) -> None:
        self.file.flush()
        self.disk.write(self.number, self.offset, self.waiting)
        self.offset, self.waiting = self.offset + len(self.waiting), b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self.file.close()


def _joined(pages: dict[int, bytes]) -> bytes:
    """Join pages; one that was lost reads as zeros, and the file ends with the last one that was not."""
    return b"".join(pages.get(page, b"").ljust(PAGE, b"\0") for page in range(max(pages, default=-1))) + (
        pages[max(pages)] if pages else b""
    )


def cut_everywhere(folder: Path, disk: RecordingDisk, saves: int = 5) -> tuple[int, set[str]]:
    """Save a few times, with new best models among them, and look at what each power cut would leave.

    Returns:
        How many different sets of files were found, and what was wrong with them.
    """
    known: dict[tuple[tuple[str, bytes], ...], dict[str, int]] = {}
    wrong: set[str] = set()
    place = folder / "found"
    place.mkdir()
    writer = Writer(folder / "checkpoints", 30, 1, disk=disk)
    said = 0

    def look() -> None:
        for layout in disk.layouts():
            files = {name: layout[name] for name in (LATEST, PREVIOUS, BEST) if name in layout}
            key = tuple((name, hashlib.sha256(content).digest()) for name, content in sorted(files.items()))
            if key not in known:
                known[key] = {}
                for name, content in files.items():
                    (place / name).write_bytes(content)
                    try:
                        known[key][name] = step(place / name)
                    except Exception as error:
                        wrong.add(f"{name} is torn: {error!r:.80}")
            if max((known[key].get(name, 0) for name in (LATEST, PREVIOUS)), default=0) < said:
                wrong.add("a checkpoint that was said to be on the disk is gone")

    disk.moments.append(look)
    for number in range(1, saves + 1):
        save(writer, number, best=number in (1, 4))
        said = number
        look()
    writer.close()
    return len(known), wrong


@pytest.mark.parametrize("room", [9, 3], ids=["room", "no room beside three files"])
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_power_cut_with_writes_in_any_order_leaves_whole_checkpoints(
    tmp_path: Path, shown: list[str], links: bool, room: int
) -> None:
    """With second names and without, and where `previous.pt` has to give way to a save."""
    disk = RecordingDisk(links, room=room)
    found, wrong = cut_everywhere(tmp_path, disk)
    assert wrong == set()
    assert found >= 8, "each save, and the two halves of it"
    shown.append(f"power cuts  {found} sets of files from {len(disk.changes)} writes, 0 runs lost")


@pytest.mark.parametrize("ignored", ["sync", "sync_folder"])
def test_power_cut_after_a_sync_that_was_left_out_is_noticed(tmp_path: Path, ignored: str) -> None:
    """The same with a disk that does not wait: what this enumeration is there to find."""
    _, wrong = cut_everywhere(tmp_path, RecordingDisk(ignored=ignored), saves=2)
    assert any("torn" in each for each in wrong) if ignored == "sync" else wrong


def test_names_of_new_folders_are_on_the_disk_before_what_lies_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each folder that is made, in the one above it."""
    synced: list[Path] = []
    monkeypatch.setattr(storage.DISK, "sync_folder", synced.append)
    storage.make_folder(tmp_path / "runs/train/checkpoints")
    assert {*synced} == {tmp_path, tmp_path / "runs", tmp_path / "runs/train"}
    synced.clear()
    storage.make_folder(tmp_path / "runs/train/checkpoints")
    assert synced == []
