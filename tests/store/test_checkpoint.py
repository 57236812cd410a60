"""What a checkpoint holds, and that reading one executes nothing."""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from kit.errors import CheckpointError, StorageError
from kit.store import checkpoint, disk
from tests.help import samples
from tests.help.fakes import FullDisk
from tests.help.samples import state


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def equal(one: Any, other: Any) -> bool:
    """Compare two states; tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and one == other


def test_checkpoint_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    """Tensors keep their bits and types, NaN and the sign of zero too; plain values stay what they were."""
    odd = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]).view(torch.int32),
        "half": torch.tensor([1.5], dtype=torch.float16),
        "brain": torch.tensor([1.5], dtype=torch.bfloat16),
        "flag": torch.tensor([True, False]),
        "nothing": torch.empty(0),
        "scalar": torch.tensor(3),
    }
    wanted = state(7, model_state_dict=odd, history=[{"epoch": 1, "loss": 0.1}], best_map=0.1 + 0.2)
    disk.publish(tmp_path / "latest.pt", lambda file: checkpoint.write(wanted, file))
    assert equal(checkpoint.read(tmp_path / "latest.pt"), wanted)


def test_checkpoint_opens_with_plain_torch(tmp_path: Path) -> None:
    """Whoever has the file needs nothing of this kit: `torch.load(path, weights_only=True)`."""
    disk.publish(tmp_path / "latest.pt", lambda file: checkpoint.write(state(7), file))
    assert equal(torch.load(tmp_path / "latest.pt", weights_only=True), state(7))


def test_checkpoint_that_was_read_outlives_its_name(tmp_path: Path) -> None:
    """Tensors stay on disk until they are touched; a newer generation under the same name does not change them."""
    path = tmp_path / "latest.pt"
    disk.publish(path, lambda file: checkpoint.write(state(7), file))
    read = checkpoint.read(path)
    disk.publish(path, lambda file: checkpoint.write(state(8), file), previous=tmp_path / "previous.pt")
    disk.publish(path, lambda file: checkpoint.write(state(9), file), previous=tmp_path / "previous.pt")
    assert equal(read, state(7))


def test_keys_of_the_contract_are_required() -> None:
    """The guide's keys and those beside them; a checkpoint that the tests make has them all."""
    guide = {"epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "best_map", "config"}
    beside = {"ema_state_dict", "scaler_state_dict", "progress", "rng_state", "history", "run_id", "format_version"}
    assert guide | beside | {"versions", "architecture"} == set(checkpoint.KEYS)
    assert set(checkpoint.KEYS) <= set(state())


def test_position_is_summarized_in_words() -> None:
    """Completed epochs, and the batches done of the next one if there are any."""
    assert checkpoint.summarize(state(7)).position == "epoch 0/5, batch 7/10"
    assert checkpoint.summarize(state(20)).position == "epoch 2/5"
    summary = checkpoint.summarize(state(27, best_map=0.5))
    assert (summary.global_step, summary.best_map, summary.run_id, summary.saved) == (27, 0.5, "one", 1e9)


# --- what is refused


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["checkpoint", "old format", "pickle"])
def test_planted_code_is_refused_and_never_runs(tmp_path: Path, form: str) -> None:
    """A pickle may call anything; whichever way it is wrapped, nothing is called."""
    planted, path = tmp_path / "planted", tmp_path / "latest.pt"
    value = state(7, extra=Bomb(planted))
    if form == "pickle":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "checkpoint")
    message = refused(path)
    assert not planted.exists()
    if form == "checkpoint":
        name = f"{open.__module__}.open"  # another one in Python 3.12
        assert f"was refused: it holds {name}, which is code, not weights. Nothing was executed." in message
        torch.load(path, weights_only=False)
        assert planted.exists()  # the bomb was a live one


def test_numpys_numbers_are_refused(tmp_path: Path) -> None:
    """They pickle as a call of numpy's; the message names it."""
    assert "numpy" in refused(samples.save(tmp_path / "latest.pt", state(best_map=numpy.float64(0.5))))


@pytest.mark.parametrize("key", checkpoint.KEYS)
def test_checkpoint_without_one_of_its_keys_is_refused(tmp_path: Path, key: str) -> None:
    """The message names the missing one."""
    values = state()
    del values[key]
    assert f"it has no '{key}'" in refused(samples.save(tmp_path / "latest.pt", values))


@pytest.mark.parametrize("value", [torch.zeros(3), [1, 2], {}, {"model": torch.zeros(3)}, None])
def test_somebody_elses_file_is_refused(tmp_path: Path, value: Any) -> None:
    """Good files of torch that are no checkpoints of this kit."""
    assert "is not a checkpoint of this kit" in refused(samples.save(tmp_path / "latest.pt", value))


def test_zip_file_that_torch_did_not_write_is_refused(tmp_path: Path) -> None:
    """Its checksums are right, and it is no checkpoint all the same."""
    with zipfile.ZipFile(tmp_path / "latest.pt", "w") as archive:
        archive.writestr("archive/readme.txt", "hello")
    assert "is not a checkpoint" in refused(tmp_path / "latest.pt")


def test_format_of_a_newer_kit_is_refused(tmp_path: Path) -> None:
    """It may mean things that this version does not know; the message says what to do."""
    path = samples.save(tmp_path / "latest.pt", state(format_version=checkpoint.FORMAT + 1))
    assert "Update the kit." in refused(path)


@pytest.mark.parametrize("version", ["1", None])
def test_format_that_is_no_number_is_refused(tmp_path: Path, version: Any) -> None:
    """A foreign file may hold anything under any key."""
    refused(samples.save(tmp_path / "latest.pt", state(format_version=version)))


def test_damaged_checkpoint_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    """`torch.load` would not notice; the checksums do, and the loader is never called."""
    path = samples.flip_weights(samples.save(tmp_path / "latest.pt", state()))
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.read(path, load=lambda path: pytest.fail("was opened"))


def test_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Wherever a bit flips, reading refuses the file or returns exactly what was written."""
    path = samples.save(tmp_path / "latest.pt", state(7))
    for position in range(0, 8 * path.stat().st_size, 61):
        samples.flip(path, position // 8, position % 8)
        try:
            assert equal(checkpoint.read(path), state(7)), position
        except CheckpointError:
            pass
        finally:
            samples.flip(path, position // 8, position % 8)


def test_disk_that_fills_up_while_a_checkpoint_is_written_is_said_so(tmp_path: Path) -> None:
    """The most likely failure of all: the old checkpoint stays, and the message says that the disk is full."""
    path = samples.save(tmp_path / "latest.pt", state(7))
    with pytest.raises(StorageError, match="the disk is full"):
        disk.publish(path, lambda file: checkpoint.write(state(8), file), disk=FullDisk(600))


def test_disk_that_fills_up_while_a_checkpoint_is_written_costs_nothing(tmp_path: Path) -> None:
    """Whatever the exception, the name holds the old checkpoint and nothing is left beside it."""
    path = samples.save(tmp_path / "latest.pt", state(7))
    for room in (0, 600, path.stat().st_size - 1):
        with pytest.raises((StorageError, RuntimeError)):
            disk.publish(path, lambda file: checkpoint.write(state(8), file), disk=FullDisk(room))
        assert equal(checkpoint.read(path), state(7))
        assert list(tmp_path.iterdir()) == [path]


# --- plain


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (numpy.float64(0.5), 0.5),
        (numpy.float32(0.5), 0.5),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.str_("a"), "a"),
        (True, True),
        (3, 3),
        (None, None),
        ("a", "a"),
        (Path("a/b"), "a/b"),
        (Pair(numpy.float64(1), [numpy.int64(2)]), (1.0, [2])),
        ({numpy.int64(1): {"a": (numpy.float32(2),)}}, {1: {"a": (2.0,)}}),
        (collections.OrderedDict(a=numpy.int64(1)), {"a": 1}),
    ],
)
def test_plain_values_are_pythons_own(tmp_path: Path, value: Any, plain: Any) -> None:
    """Numbers of numpy, paths and named tuples become what `weights_only` loading accepts, at any depth."""
    converted = checkpoint.plain(value)
    assert equal(converted, plain)
    loaded = torch.load(samples.save(tmp_path / "value.pt", [converted]), weights_only=True)
    assert equal(loaded[0], plain)


def test_plain_leaves_tensors_alone() -> None:
    """The same tensor comes back, not a copy and not a number."""
    tensor = torch.tensor(3.0)
    assert checkpoint.plain({"a": [tensor]})["a"][0] is tensor


def test_plain_turns_an_array_into_plain_values() -> None:
    """An array is a list of numbers."""
    assert equal(checkpoint.plain(numpy.arange(3)), [0, 1, 2])
