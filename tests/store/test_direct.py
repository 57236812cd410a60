"""Writing past the page cache: the same bytes, and a way out where it cannot be done."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import torch

from kit.store import checkpoint, direct, disk
from kit.store.direct import ALIGNMENT, BLOCK, DirectFile
from tests.help import samples


@pytest.mark.parametrize("size", [0, 1, ALIGNMENT - 1, ALIGNMENT, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 12345])
@pytest.mark.parametrize("piece", [7777, 1 << 30])
def test_file_holds_what_was_written(tmp_path: Path, size: int, piece: int) -> None:
    """Whatever the size of the pieces, and with nothing behind the end."""
    content = os.urandom(size)
    with DirectFile(tmp_path / "file") as file:
        for begin in range(0, size, piece):
            assert file.write(memoryview(content)[begin : begin + piece]) == min(piece, size - begin)
        file.flush()
    assert (tmp_path / "file").read_bytes() == content


def test_file_that_is_flushed_goes_on(tmp_path: Path) -> None:
    """Torch flushes when its archive is complete, and publishing does so again."""
    with DirectFile(tmp_path / "file") as file:
        for text in (b"one ", b"two ", b"three"):
            file.write(text)
            file.flush()
            file.flush()
    assert (tmp_path / "file").read_bytes() == b"one two three"


def test_numbers_of_any_type_are_written_as_their_bytes(tmp_path: Path) -> None:
    """Torch hands over views of tensors."""
    numbers = torch.arange(5, dtype=torch.float64).numpy()
    with DirectFile(tmp_path / "file") as file:
        assert file.write(memoryview(numbers)) == 40
        file.flush()
    assert (tmp_path / "file").read_bytes() == numbers.tobytes()


def test_checkpoint_is_the_same_file_either_way(tmp_path: Path) -> None:
    """Byte for byte what torch writes through the page cache."""
    state = samples.state(3, ema_state_dict={"weight": torch.randn(1000, 1000)})
    with DirectFile(tmp_path / "direct.pt") as file:
        checkpoint.write(state, cast(BinaryIO, file))
        file.flush()
    with open(tmp_path / "usual.pt", "wb") as usual:
        checkpoint.write(state, usual)
    assert (tmp_path / "direct.pt").read_bytes() == (tmp_path / "usual.pt").read_bytes()


def test_what_waits_for_the_disk_is_written_directly_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress that is rewritten every second must not wait for the disk."""
    made: list[Path] = []

    class Watched(DirectFile):
        def __init__(self, path: Path) -> None:
            made.append(path)
            super().__init__(path)

    monkeypatch.setattr(disk, "DirectFile", Watched)
    disk.publish(tmp_path / "status.json", lambda file: file.write(b"{}"), durable=False)
    assert made == []
    disk.publish(tmp_path / "latest.pt", lambda file: file.write(b"content"))
    assert len(made) == 1
    assert (tmp_path / "latest.pt").read_bytes() == b"content"


@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_file_system_that_cannot_is_written_to_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Some refuse to open a file so, some to write to it."""
    real = getattr(os, call)

    def refuse(*arguments: Any, **more: Any) -> Any:
        if call == "open" and not arguments[1] & os.O_DIRECT:
            return real(*arguments, **more)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(direct.os, call, refuse)
    disk.publish(tmp_path / "latest.pt", lambda file: file.write(b"content"))
    monkeypatch.undo()
    assert (tmp_path / "latest.pt").read_bytes() == b"content"


def test_write_that_the_disk_takes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call may take less than it is given."""
    whole = os.pwrite
    monkeypatch.setattr(direct.os, "pwrite", lambda fd, data, at: whole(fd, data[:ALIGNMENT], at))
    content = os.urandom(BLOCK + 3 * ALIGNMENT + 5)
    with DirectFile(tmp_path / "file") as file:
        file.write(content)
        file.flush()
    assert (tmp_path / "file").read_bytes() == content
