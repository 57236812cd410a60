"""What a file asks for is found out before it is opened: a small one costs little, whatever it says of itself."""

from __future__ import annotations

import codecs
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from kit.errors import CheckpointError
from kit.kaggle import session
from kit.run import discovery
from kit.store import checkpoint, peek, trust
from tests.help import samples

BIG = 3 << 30  # bytes
MEMORY = 500 << 20  # bytes that a look may take beside the libraries
LOOK = """
import resource, sys
from pathlib import Path
from kit.run import discovery
from kit.yolo.models import open_checkpoint
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in map(Path, sys.argv[2:]):
    print(discovery.look(path, open_checkpoint).problem)
"""


def repack(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Pack a checkpoint's records anew, as a program that compresses folders does; nothing of them is lost."""
    with zipfile.ZipFile(path) as old:
        records = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", method) as new:
        for name, content in records:
            new.writestr(name, content)
    return path


def with_pickle(path: Path, raw: bytes) -> Path:
    """Put another pickle into a checkpoint."""
    samples.save(path, samples.state(7))
    with zipfile.ZipFile(path) as old:
        records = [(name, raw if name.endswith("/data.pkl") else old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records:
            new.writestr(name, content)
    return path


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


# --- records


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packed_checkpoint_is_refused(tmp_path: Path, method: int) -> None:
    """Whole, but torch maps the packed bytes as weights."""
    path = samples.save(tmp_path / "latest.pt", samples.state(7))
    repack(path, method)
    for look in (trust.verify, checkpoint.read, peek.read_facts):
        with pytest.raises(CheckpointError, match=r"was packed anew by another program: its record '.+' is compressed"):
            look(path)
    if method == zipfile.ZIP_DEFLATED:
        taken = torch.load(path, mmap=True, weights_only=True)["model_state_dict"]["weight"]
        assert not torch.equal(taken, torch.full((64,), 7.0)), "which is why"


def test_checkpoint_that_was_packed_without_compression_is_as_good(tmp_path: Path) -> None:
    """Its records are elsewhere, and torch looks where they are."""
    path = repack(samples.save(tmp_path / "latest.pt", samples.state(7)), zipfile.ZIP_STORED)
    assert torch.equal(checkpoint.read(path)["model_state_dict"]["weight"], torch.full((64,), 7.0))


def test_record_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """A zip that was added to: which one torch takes, the checksums do not say."""
    path = samples.save(tmp_path / "latest.pt", samples.state(7))
    name = next(name for name in samples.records(path) if "/data/" in name)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as added:
        added.writestr(name, bytes(256))
    with pytest.raises(CheckpointError, match="its records do not lie as torch writes them"):
        trust.verify(path)


def test_file_that_something_stands_before_is_refused(tmp_path: Path) -> None:
    """A zip is read from its end, and torch reads from the beginning."""
    path = samples.save(tmp_path / "latest.pt", samples.state(7))
    path.write_bytes(b"HTTP/1.1 200 OK\r\n\r\n" + path.read_bytes())
    with pytest.raises(CheckpointError, match="its records do not lie as torch writes them"):
        trust.verify(path)


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Opened, it would wait for somebody to write into it."""
    os.mkfifo(tmp_path / "latest.pt")
    assert "is no file" in discovery.look(tmp_path / "latest.pt").problem
    with pytest.raises(CheckpointError, match="is no file"):
        peek.read_facts(tmp_path / "latest.pt")


# --- pickles


class Writer(pickle.Pickler):
    """Writes a storage as torch does: by its record's name and the number of its elements."""

    def persistent_id(self, value: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", value.numel) if isinstance(value, Storage) else None


class Storage:
    def __init__(self, numel: int) -> None:
        self.numel = numel


def tensor(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Pickle a tensor of a record of 64 numbers."""
    file = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    Writer(file, 2).dump([Call(rebuild, Storage(numel), offset, size, stride, False, OrderedDict())])
    return file.getvalue()


def many(count: int, function: Any, *arguments: Any) -> bytes:
    return pickle.dumps([Call(function, *arguments) for _ in range(count)], 2)


def shared_lists() -> bytes:
    """Lists of lists: 10^30 values in a few hundred bytes."""
    value: Any = "x"
    for _ in range(30):
        value = [value] * 10
    return pickle.dumps({"architecture": {"names": value}}, 2)


def changed_parameter() -> bytes:
    """Give a parameter a state, which torch takes for the size that it is to have."""
    file = io.BytesIO()
    data = Call(torch._utils._rebuild_tensor_v2, Storage(64), 0, (64,), (1,), False, OrderedDict())
    Writer(file, 2).dump([Changed(torch._utils._rebuild_parameter, data, False, OrderedDict())])
    return file.getvalue()


class Changed(Call):
    """Pickles as a call, and a state for what it returns."""

    def __reduce__(self) -> Any:
        return (*self.call, (Storage(64), 0, (BIG,), (1,)))


def own_list() -> bytes:
    value: list[Any] = []
    value.append(value)
    return pickle.dumps(value, 2)


MORE, REACH = "its values ask for more than the file holds", "a tensor reaches beyond its record"
UNFOLD, SIZE = "its values unfold to more than the file holds", "its record 'data/0' has another size than its tensors"
ASKS: dict[str, tuple[bytes, str]] = {
    "a buffer": (many(1, bytearray, BIG), "it asks for '__builtin__.bytearray'"),
    "a tensor of a size": (many(1, torch.FloatTensor, 1 << 10, 1 << 10, 1 << 10), "it asks for 'torch.FloatTensor'"),
    "a tensor around others": (
        many(1, torch._tensor._rebuild_from_type_v2, bytearray, bytearray, (BIG,), None),
        "it asks for 'torch._tensor._rebuild_from_type_v2'",
    ),
    "a layer": (many(1, nn.Linear, 9, 9), "it builds a layer"),
    "a type of numpy's": (many(1, numpy.dtype, f"V{BIG}"), f"it asks for numpy's type 'V{BIG}'"),
    "a codec": (many(1, codecs.encode, "e" * 100, "punycode"), "it asks for the codec 'punycode'"),
    "a layer that counts": (pickle.dumps(torch.nn.LSTM, 2), "it asks for 'torch.nn.modules.rnn.LSTM'"),
    "a parameter of another size": (changed_parameter(), "it changes a tensor"),
    "copies of a set": (many(100, set, list(range(1000))), MORE),
    "copies of a dictionary": (many(2, OrderedDict, [("a", 1)] * 1000), "takes 1 positional argument but 2 were given"),
    "lists of lists": (shared_lists(), UNFOLD),
    "a list of itself": (own_list(), UNFOLD),
    "a long memo": (b"\x80\x02]r\xff\xff\xff\x7f.", "is not a checkpoint of this kit"),
    "a long text": (b"\x80\x02X\xff\xff\xff\x7fabc.", "is not a checkpoint: EOFError"),
    "a long pickle": (b"\x80\x02" + bytes(9 << 20), "its pickle has 9 MB"),
    "a record of a size": (tensor(BIG, 0, (BIG,), (1,)), SIZE),
    "a larger tensor": (tensor(64, 0, (65,), (1,)), REACH),
    "a tensor behind its record": (tensor(64, 1, (64,), (1,)), REACH),
    "a tensor before its record": (tensor(64, -1, (64,), (1,)), REACH),
    "a tensor with gaps": (tensor(64, 0, (2,), (BIG,)), REACH),
    "a tensor of one number": (tensor(64, 0, (BIG,), (0,)), MORE),
}


def test_small_file_costs_little_whatever_it_asks_for(tmp_path: Path) -> None:
    """A call, a list that unfolds without end, a number that says how long something is; nothing of it is made."""
    files = [with_pickle(tmp_path / f"{number}.pt", raw) for number, (raw, _) in enumerate(ASKS.values())]
    assert max(file.stat().st_size for file in files) < 10 << 20
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(MEMORY), *map(str, files)],
        env={**os.environ, "PYTHONPATH": str(session.REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (what, (_, reason)), said in zip(ASKS.items(), done.stdout.splitlines(), strict=True):
        assert reason in said, what


def test_whole_checkpoint_asks_for_what_it_has(tmp_path: Path) -> None:
    """Tensors of each type, empty ones, parts of others and one under two names."""
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
    tensors = {str(kind): torch.ones(3, 4, dtype=kind) for kind in (*kinds, torch.bool, torch.uint16, torch.complex64)}
    whole = torch.arange(12.0).reshape(3, 4)
    tensors |= {"none": torch.empty(0, 3), "whole": whole, "turned": whole.T, "part": whole[1:, 1:], "again": whole}
    path = samples.save(tmp_path / "latest.pt", samples.state(7, model_state_dict=tensors))
    assert set(trust.look_through(path)["model_state_dict"]) == set(tensors)
    assert discovery.look(path).problem == ""
