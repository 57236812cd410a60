"""Which checkpoint is found: by content, never by modification time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import samples
from samples import save, state

from kit import discovery
from kit.discovery import Candidate

IDENTITY = {"task": "detect", "model": "yolov8n.yaml", "names": ["cat", "dog"]}


@pytest.fixture
def run(place: Path) -> Path:
    """A run folder."""
    return place / "working" / "runs" / "train"


def steps(candidates: list[Candidate]) -> list[int | None]:
    return [found.summary.global_step if found.summary else None for found in candidates]


def test_nothing_is_found_where_there_is_nothing(place: Path, run: Path) -> None:
    """Neither a missing run folder nor a missing input folder is an error."""
    assert discovery.scan(run) == []
    (place / "input").rmdir()
    assert discovery.scan(run) == []


def test_most_steps_win_and_not_the_newest_file(place: Path, run: Path) -> None:
    """Kaggle copies files, which makes the modification time worthless."""
    paths = [
        save(run / "checkpoints/latest.pt", state(20)),
        save(run / "checkpoints/previous.pt", state(10)),
        save(place / "input/old/runs/train/checkpoints/latest.pt", state(30)),
        save(place / "input/older/checkpoints/previous.pt", state(5)),
    ]
    for order in (paths, paths[::-1]):
        for second, path in enumerate(order):
            os.utime(path, (1e9 + second, 1e9 + second))
        assert steps(discovery.scan(run)) == [30, 20, 10, 5]


def test_steps_are_counted_and_not_epochs_or_batches(place: Path, run: Path) -> None:
    """Epoch 2 of a run with long epochs is further than epoch 9 of one with short ones; 10 is more than 9."""
    save(run / "checkpoints/latest.pt", state(9, epoch=9))
    save(run / "checkpoints/previous.pt", state(10, epoch=2))
    assert steps(discovery.scan(run)) == [10, 9]


def test_attached_checkpoint_is_found_however_deep_it_lies(place: Path, run: Path) -> None:
    """Kaggle puts the output of another notebook where it likes."""
    path = save(place / "input/notebooks/somebody/name/v3/a/b/latest.pt", state(7))
    assert [found.path for found in discovery.scan(run)] == [path]


def test_equal_checkpoints_are_taken_from_the_run_folder(place: Path, run: Path) -> None:
    """Of two that are equally far, the own latest comes first."""
    save(place / "input/a/latest.pt", state(7))
    save(run / "checkpoints/previous.pt", state(7))
    own = save(run / "checkpoints/latest.pt", state(7))
    assert discovery.scan(run)[0].path == own


def test_half_written_checkpoint_is_never_chosen(place: Path, run: Path) -> None:
    """A torn latest.pt steps back behind the generation before, and says why."""
    latest = save(run / "checkpoints/latest.pt", state(20))
    latest.write_bytes(latest.read_bytes()[:-100])
    save(run / "checkpoints/previous.pt", state(10))
    found = discovery.scan(run)
    assert steps(found) == [10, None]
    assert found[1].path == latest
    assert "is not a whole checkpoint" in found[1].problem


def damage_nothing(path: Path) -> None:
    path.write_bytes(b"")


def damage_bit(path: Path) -> None:
    samples.flip_weights(path)


def make_code(path: Path) -> None:
    save(path, state(20, extra=Candidate))


def make_foreign(path: Path) -> None:
    save(path, {"model": 1})


def make_newer(path: Path) -> None:
    save(path, state(20, format_version=99))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_nothing, "is not a whole checkpoint"),
        (damage_bit, "is damaged: the checksum of its record"),
        (make_code, "kit.discovery.Candidate, which is code"),
        (make_foreign, "is not a checkpoint of this kit"),
        (make_newer, "update the kit"),
    ],
)
def test_bad_checkpoint_is_reported_with_its_reason_and_the_good_one_found(
    place: Path, run: Path, damage: Any, reason: str
) -> None:
    """One bad file never hides a good one."""
    bad = save(run / "checkpoints/latest.pt", state(20))
    damage(bad)
    save(place / "input/a/latest.pt", state(10))
    good, other = discovery.scan(run)
    assert (good.summary is not None, good.problem) == (True, "")
    assert (other.path, other.summary, other.identity) == (bad, None, {})
    assert reason in other.problem


@pytest.mark.parametrize("change", [{"architecture": None}, {"progress": {}}, {"progress": 3}, {"format_version": "1"}])
def test_checkpoint_with_foreign_values_is_reported_with_its_reason(
    place: Path, run: Path, change: dict[str, Any]
) -> None:
    """An attached file may hold anything under the right keys; it must not keep a run from its own checkpoint."""
    values = {**state(20, best_map=0.5), **change}
    save(place / "input/a/latest.pt", {key: value for key, value in values.items() if value is not None})
    save(run / "checkpoints/latest.pt", state(10))
    good, bad = discovery.scan(run)
    assert good.summary is not None
    assert bad.problem


def test_folder_with_a_checkpoints_name_is_no_checkpoint(place: Path, run: Path) -> None:
    """It is reported and does not stop the search."""
    (place / "input/latest.pt").mkdir(parents=True)
    save(run / "checkpoints/latest.pt", state(10))
    assert steps(discovery.scan(run)) == [10, None]


def test_looking_changes_nothing(place: Path, run: Path) -> None:
    """The input folder is read-only, and a run folder belongs to its writer."""
    save(run / "checkpoints/latest.pt", state(20))
    samples.flip_weights(save(place / "input/a/latest.pt", state(20)))
    before = [(path, path.stat().st_mtime_ns) for path in sorted(place.rglob("*"))]
    discovery.scan(run)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(place.rglob("*"))] == before


def test_checkpoint_of_the_same_run_has_no_mismatch(tmp_path: Path) -> None:
    """Task, architecture and class names agree; what else the identity holds does not matter."""
    values = state(architecture={**IDENTITY, "yaml": {"nc": 2}})
    assert discovery.mismatch(discovery.look(save(tmp_path / "latest.pt", values)), IDENTITY) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "segment"}, "its task is 'detect' and not 'segment'"),
        ({"model": "yolov8s.yaml"}, "its model is 'yolov8n.yaml' and not 'yolov8s.yaml'"),
        ({"names": ["cat"]}, "its classes is 'cat, dog' and not 'cat'"),
        ({"names": ["dog", "cat"]}, "its classes is 'cat, dog' and not 'dog, cat'"),
    ],
)
def test_mismatch_says_in_which_way(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """The first difference, with both values."""
    found = discovery.look(save(tmp_path / "latest.pt", state()))
    assert discovery.mismatch(found, {**IDENTITY, **change}).replace(" are ", " is ") == message


def test_mismatch_of_many_classes_is_short(tmp_path: Path) -> None:
    """Eighty class names do not fill the screen."""
    found = discovery.look(save(tmp_path / "latest.pt", state()))
    assert len(discovery.mismatch(found, {**IDENTITY, "names": [f"class{i}" for i in range(80)]})) < 150


def test_candidate_is_plain_json(tmp_path: Path) -> None:
    """`python -m kit find --json` prints it, good or bad."""
    good = discovery.look(save(tmp_path / "latest.pt", state(7)))
    bad = discovery.look(tmp_path / "none.pt")
    values = json.loads(json.dumps([good.to_dict(), bad.to_dict()]))
    assert values[0]["summary"]["global_step"] == 7
    assert values[0]["path"] == str(tmp_path / "latest.pt")
    assert "does not exist" in values[1]["problem"]
