"""Which checkpoint is found: by content, never by modification time."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kit.config import Config
from kit.errors import MismatchError
from kit.kaggle import inputs
from kit.run import discovery
from kit.run.discovery import Candidate, Verdict
from kit.yolo.settings import schema
from tests.help import samples
from tests.help.samples import save, state

CONFIG = Config(schema())
IDENTITY = {"task": "detect", "model": "yolov8n.yaml", "names": ["cat", "dog"]}


@pytest.fixture
def run(place: Path) -> Path:
    """A run folder."""
    return place / "working" / "runs" / "train"


def judge(**settings: Any) -> list[Verdict]:
    """Return the verdicts for a run with these settings."""
    return discovery.judge(Config(schema(), settings), IDENTITY)


def taken(verdicts: list[Verdict]) -> Path | None:
    return next((verdict.candidate.path for verdict in verdicts if verdict.taken), None)


def steps(candidates: list[Candidate]) -> list[int | None]:
    return [found.summary.global_step if found.summary else None for found in candidates]


def test_nothing_is_found_where_there_is_nothing(place: Path, run: Path) -> None:
    """Neither a missing run folder nor a missing input folder is an error."""
    assert discovery.scan(CONFIG) == []
    (place / "input").rmdir()
    assert discovery.scan(CONFIG) == []


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
        assert steps(discovery.scan(CONFIG)) == [30, 20, 10, 5]


def test_steps_are_counted_and_not_epochs_or_batches(place: Path, run: Path) -> None:
    """Epoch 2 of a run with long epochs is further than epoch 9 of one with short ones; 10 is more than 9."""
    save(run / "checkpoints/latest.pt", state(9, epoch=9))
    save(run / "checkpoints/previous.pt", state(10, epoch=2))
    assert steps(discovery.scan(CONFIG)) == [10, 9]


def test_attached_checkpoint_is_found_however_deep_it_lies(place: Path, run: Path) -> None:
    """Kaggle puts the output of another notebook where it likes."""
    path = save(place / "input/notebooks/somebody/name/v3/a/b/latest.pt", state(7))
    assert [found.path for found in discovery.scan(CONFIG)] == [path]


def test_equal_checkpoints_are_taken_from_the_run_folder(place: Path, run: Path) -> None:
    """Of two that are equally far, the own latest comes first."""
    save(place / "input/a/latest.pt", state(7))
    save(run / "checkpoints/previous.pt", state(7))
    own = save(run / "checkpoints/latest.pt", state(7))
    assert discovery.scan(CONFIG)[0].path == own


def test_half_written_checkpoint_is_never_chosen(place: Path, run: Path) -> None:
    """A torn latest.pt steps back behind the generation before, and says why."""
    latest = save(run / "checkpoints/latest.pt", state(20))
    latest.write_bytes(latest.read_bytes()[:-100])
    save(run / "checkpoints/previous.pt", state(10))
    verdicts = judge()
    assert taken(verdicts) == run / "checkpoints/previous.pt"
    assert verdicts[1].candidate.path == latest
    assert "is not a whole checkpoint" in verdicts[1].reason


def damage_nothing(path: Path) -> None:
    path.write_bytes(b"")


def damage_bit(path: Path) -> None:
    samples.flip_weights(path)


def make_code(path: Path) -> None:
    save(path, state(20, extra=Candidate))


def make_foreign(path: Path) -> None:
    save(path, {"model": 1})


def make_torn(path: Path) -> None:
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:  # as a bit that makes another operation of one: the checksum is never read
        for name, content in records.items():
            new.writestr(name, b"\x80\x02u." if name.endswith("/data.pkl") else content)


def make_newer(path: Path) -> None:
    save(path, state(20, format_version=99))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_nothing, "is not a whole checkpoint"),
        (damage_bit, "is damaged: the checksum of its record"),
        (make_code, "kit.run.discovery.Candidate, which is code"),
        (make_foreign, "is not a checkpoint of this kit"),
        (make_newer, "Update the kit."),
        (make_torn, "is not a checkpoint"),
    ],
)
def test_bad_checkpoint_is_reported_with_its_reason_and_the_good_one_found(
    place: Path, run: Path, damage: Any, reason: str
) -> None:
    """One bad file never hides a good one."""
    bad = save(run / "checkpoints/latest.pt", state(20))
    damage(bad)
    save(place / "input/a/latest.pt", state(10))
    verdicts = judge()
    assert taken(verdicts) == place / "input/a/latest.pt"
    (other,) = [verdict for verdict in verdicts if not verdict.taken]
    assert other.candidate.path == bad
    assert reason in f"{other.reason} {other.candidate.hint}"
    assert other.reason == other.candidate.problem


@pytest.mark.parametrize(
    "change", [{"architecture": None}, {"progress": {}}, {"progress": 3}, {"config": 3}, {"format_version": "1"}]
)
def test_checkpoint_with_foreign_values_is_reported_with_its_reason(
    place: Path, run: Path, change: dict[str, Any]
) -> None:
    """An attached file may hold anything under the right keys; it must not keep a run from its own checkpoint."""
    values = {**state(20, best_map=0.5), **change}
    save(place / "input/a/latest.pt", {key: value for key, value in values.items() if value is not None})
    save(run / "checkpoints/latest.pt", state(10))
    good, bad = judge()
    assert good.taken
    assert bad.candidate.problem


def test_folder_with_a_checkpoints_name_is_no_checkpoint(place: Path, run: Path) -> None:
    """It is reported and does not stop the search."""
    (place / "input/latest.pt").mkdir(parents=True)
    save(run / "checkpoints/latest.pt", state(10))
    assert steps(discovery.scan(CONFIG)) == [10, None]


def test_looking_changes_nothing(place: Path, run: Path) -> None:
    """The input folder is read-only, and a run folder belongs to its writer."""
    save(run / "checkpoints/latest.pt", state(20))
    samples.flip_weights(save(place / "input/a/latest.pt", state(20)))
    before = [(path, path.stat().st_mtime_ns) for path in sorted(place.rglob("*"))]
    judge()
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


@pytest.mark.parametrize("name", ["latest.pt", "latest (1).pt", "latest-e012-1a2b3c4d.pt"])
@pytest.mark.parametrize("folder", ["working", "input/latest-from-my-laptop", "input/datasets/me/mine"])
def test_upload_is_found_under_the_name_that_a_browser_gave_it(place: Path, name: str, folder: str) -> None:
    """Dropped into the working folder, or attached as a data set in either of Kaggle's layouts."""
    path = save(place / folder / name, state(7))
    assert taken(judge()) == path


def test_run_in_the_folder_is_not_left_for_another_that_got_further(place: Path, run: Path) -> None:
    """A run that was started anew beside the attached output of the old one goes on; what is its own counts."""
    save(place / "input/v1/latest.pt", state(50, run_id="old"))
    own = save(run / "checkpoints/latest.pt", state(10, run_id="new"))
    verdicts = judge()
    assert taken(verdicts) == own
    assert verdicts[0].reason == "of another run than the one in the run folder"
    further = save(place / "input/v2/latest.pt", state(30, run_id="new"))
    inputs.forget()
    assert taken(judge()) == further


def test_run_in_the_folder_counts_even_where_its_newest_file_is_damaged(place: Path, run: Path) -> None:
    """The generation before says as well which run it is."""
    save(place / "input/v1/latest.pt", state(50, run_id="old"))
    samples.flip_weights(save(run / "checkpoints/latest.pt", state(20, run_id="old")))
    own = save(run / "checkpoints/previous.pt", state(10, run_id="new"))
    assert taken(judge()) == own


def test_folder_of_another_run_is_refused_however_far_the_right_one_got(place: Path, run: Path) -> None:
    """Run A's folder must not swallow run B's checkpoint."""
    save(run / "checkpoints/latest.pt", state(10, architecture={**IDENTITY, "task": "segment"}))
    save(place / "input/a/latest.pt", state(50))
    with pytest.raises(MismatchError, match="holds another run: its task is 'segment' and not 'detect'"):
        judge()


def test_another_run_among_the_inputs_is_passed_over(place: Path) -> None:
    """It says in which way it is another one."""
    save(place / "input/a/latest.pt", state(50, architecture={**IDENTITY, "names": ["bird"]}))
    right = save(place / "input/b/latest.pt", state(10))
    verdicts = judge()
    assert taken(verdicts) == right
    assert verdicts[0].reason == "of another run: its classes is 'bird' and not 'cat, dog'"


def test_attached_checkpoint_of_the_same_settings_is_preferred(place: Path) -> None:
    """Of two experiments the one that the settings describe; where there is none, the user is asked to decide."""
    other = save(place / "input/a/latest.pt", state(50, config={"lr0": 0.5}))
    right = save(place / "input/b/latest.pt", state(10, config={"lr0": 0.25}))
    assert taken(judge(lr0=0.25)) == right
    assert taken(judge(lr0=0.125)) == other
    assert discovery.changes(judge(lr0=0.125)[0].candidate, Config(schema(), {"lr0": 0.125})) != []


def test_no_file_is_read_to_its_end_that_cannot_change_the_choice(place: Path, run: Path) -> None:
    """A dozen attached checkpoints cost no minute: those that are behind are opened and no more."""
    save(run / "checkpoints/latest.pt", state(20))
    samples.flip_weights(save(place / "input/a/latest.pt", state(10)))
    good, behind = judge()
    assert good.taken
    assert (behind.candidate.problem, behind.reason) == ("", discovery.LESS)


def test_candidate_is_plain_json(tmp_path: Path) -> None:
    """`python -m kit find --json` prints it, good or bad."""
    good = discovery.look(save(tmp_path / "latest.pt", state(7)))
    bad = discovery.look(tmp_path / "none.pt")
    values = json.loads(json.dumps([Verdict(good, taken=True).to_dict(), bad.to_dict()]))
    assert values[0]["taken"] is True
    assert values[0]["summary"]["global_step"] == 7
    assert values[0]["path"] == str(tmp_path / "latest.pt")
    assert "does not exist" in values[1]["problem"]
