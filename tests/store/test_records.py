"""torch's file format, written by the kit: what `torch.save` would have written, at places that suit the disk."""

from __future__ import annotations

import mmap
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.store import direct, records, trust
from tests.help import samples

STATE = {
    "weights": torch.arange(300_000).float(),
    "half": torch.rand(33, 3).half(),
    "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "none": torch.empty(0),
    "channels_last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "plain": [1, 2.5, "é", None, {"deep": (True,)}],
}
STATE["view"] = STATE["weights"][1000:2000]  # shares its memory


def written(path: Path) -> dict[str, bytes]:
    """Return the records of a file, verified."""
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def test_records_are_those_of_torch(tmp_path: Path) -> None:
    """Names and contents, but for the random number that torch gives each file."""
    with open(tmp_path / "own.pt", "wb") as file:
        records.save(STATE, file)
    torch.save(STATE, tmp_path / "torch.pt")
    theirs = written(tmp_path / "torch.pt")
    theirs.pop(".data/serialization_id", None)
    assert written(tmp_path / "own.pt") == theirs


@pytest.mark.parametrize("mapped", [True, False])
def test_torch_reads_what_was_written(tmp_path: Path, mapped: bool) -> None:
    """Also into memory that is mapped; tensors that share memory still do."""
    with open(tmp_path / "own.pt", "wb") as file:
        records.save(STATE, file)
    read = torch.load(tmp_path / "own.pt", weights_only=True, mmap=mapped)
    for name, value in STATE.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(read[name], value)
            assert read[name].stride() == value.stride()
    assert read["plain"] == STATE["plain"]
    assert read["view"].untyped_storage().data_ptr() == read["weights"].untyped_storage().data_ptr()


def test_records_begin_where_torch_and_the_disk_want_them(tmp_path: Path) -> None:
    """At multiples of 64 bytes, large ones at multiples of 4096."""
    with open(tmp_path / "own.pt", "wb") as file:
        records.save(STATE, file)
    for begins, size in samples.records(tmp_path / "own.pt").values():
        assert begins % (4096 if size >= 4096 else 64) == 0


class SparseFile:
    """A file in which what is long is left out: it reads as zeros."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: SIM115

    def write(self, data: Any) -> int:
        if len(data) > 1 << 20:
            self.file.seek(len(data), os.SEEK_CUR)
            return len(data)
        return self.file.write(data)


def test_file_may_be_larger_than_four_gigabytes(tmp_path: Path) -> None:
    """One record that is, and one behind it."""
    state = {"large": torch.zeros((1 << 32) + 64, dtype=torch.uint8), "behind": torch.arange(9.0)}
    file = SparseFile(tmp_path / "own.pt")
    records.save(state, file)  # type: ignore[arg-type]
    file.file.close()
    read = torch.load(tmp_path / "own.pt", weights_only=True, mmap=True)
    assert read["large"].shape == state["large"].shape
    assert torch.equal(read["behind"], state["behind"])
    with zipfile.ZipFile(tmp_path / "own.pt") as found:
        sizes = {info.filename: info.file_size for info in found.infolist()}
    assert sizes["archive/data/0"] == (1 << 32) + 64


def test_memory_that_lies_well_is_written_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes past the block in which everything else is collected; what is left of a unit does not."""
    memory = mmap.mmap(-1, 3 * direct.BLOCK + 100)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    tensor.copy_(torch.arange(len(tensor)) % 251)
    lengths: list[int] = []
    own = os.pwrite

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        lengths.append(len(data))
        return own(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    try:
        file = direct.DirectFile(tmp_path / "own.pt")
    except OSError:
        pytest.skip("no direct writing here")
    with file:
        records.save({"tensor": tensor}, file)  # type: ignore[arg-type]
        file.flush()
    assert 3 * direct.BLOCK in lengths
    assert max(lengths) == 3 * direct.BLOCK
    assert torch.equal(torch.load(tmp_path / "own.pt", weights_only=True)["tensor"], tensor)
    trust.verify(tmp_path / "own.pt")


def test_disk_that_fills_up_is_seen_as_such(tmp_path: Path) -> None:
    """The error of the system reaches whoever saves, not one of torch's."""

    class Full:
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        records.save(STATE, Full())  # type: ignore[arg-type]
