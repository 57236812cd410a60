"""What a notebook shows of a run: numbers from its files, drawn as HTML and as text, of bounded size."""

from __future__ import annotations

import ctypes
import re
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from kit.dashboard import curves, gpus, page
from kit.dashboard.facts import Context, Facts, Gpu, compute, look, read_rows
from kit.text import clock, size
from tests.help import runs
from tests.help.runs import NOW, rows, status

AROUND = Context(now=NOW)


def facts(context: Context = AROUND, count: int = 10, **changes: Any) -> Facts:
    return compute(status(**changes), rows(count), {}, context)


def test_rates_and_times_left_come_from_the_files_alone() -> None:
    """50 of 100 batches in 50 s: one a second; an epoch takes 100 s, and nine and a half are left."""
    found = facts()
    assert (found.epoch, found.batch, found.done) == (11, 50, 10.5)
    assert found.rate == pytest.approx(1.0)
    assert found.batches_s == pytest.approx(50)
    assert found.epoch_s == pytest.approx(100)
    assert found.left_s == pytest.approx(950)


def test_time_of_an_epoch_is_that_of_the_last_ones() -> None:
    """A faster machine in this session: the epochs of the one before do not count any more."""
    slow = rows(10)
    fast = [{**row, "epoch": 10.0 + n, "time": 1000 + 20.0 * n} for n, row in enumerate(rows(6), 1)]
    found = compute(status(epoch=17, elapsed_s=1130.0), (*slow, *fast), {}, AROUND)
    assert found.epoch_s == pytest.approx(20)


def test_kill_would_cost_the_time_since_the_last_checkpoint() -> None:
    """Its age is both; a run that does not train has nothing to lose."""
    assert (facts().saved_s, facts().lost_s) == (12, 12)
    stopped = facts(state="stopped")
    assert (stopped.saved_s, stopped.lost_s) == (12, None)
    assert facts(checkpoint=None).saved_s is None


def test_best_and_current_measure_have_their_epochs() -> None:
    """The last epoch was worse than the one before."""
    found = facts()
    assert found.metric == "mAP50-95"
    assert found.current == (rows(10)[9]["metrics/mAP50-95(B)"], 10)
    assert found.best == (rows(10)[8]["metrics/mAP50-95(B)"], 9)


def test_best_is_what_the_run_says_where_its_best_file_had_gone() -> None:
    """A later best.pt holds less than the best row: no epoch is claimed for it."""
    assert facts(best_map=0.2).best == (0.2, None)


@pytest.mark.parametrize(
    ("columns", "label", "value"),
    [
        ({"metrics/mAP50-95(B)": 0.5, "metrics/mAP50-95(M)": 0.4}, "mAP50-95", 0.4),
        ({"metrics/mAP50-95(B)": 0.5, "metrics/mAP50-95(P)": 0.3}, "mAP50-95", 0.3),
        ({"metrics/accuracy_top1": 0.7, "metrics/accuracy_top5": 0.9}, "top-1 accuracy", 0.7),
    ],
)
def test_measure_is_the_one_of_the_task(columns: dict[str, float], label: str, value: float) -> None:
    """Masks and key points go before their boxes."""
    found = compute(status(best_map=None), ({"epoch": 1.0, "time": 9.0, **columns},), {}, AROUND)
    assert (found.metric, found.current) == (label, (value, 1))
    assert curves.measures(found.rows)[0].points == [(1.0, value)]


@pytest.mark.parametrize(
    ("usable", "fit", "sessions"),
    [(10_000, 10, 0), (600, 6, 1), (40, 0, 2)],
)
def test_session_says_what_fits_and_how_many_more_it_takes(usable: float, fit: int, sessions: int) -> None:
    """9.5 epochs of 100 s are left, and a session trains for 700 s; training leaves 60 s before the end."""
    found = facts(session_ends=NOW + usable + 60, session_leaves=NOW + usable, session_s=700.0)
    assert found.session_s == usable + 60
    assert (found.fit, found.sessions) == (fit, sessions)


def test_news_of_an_earlier_session_are_not_taken_for_those_of_this_one() -> None:
    """A run that was killed left «training»: until the new process speaks, it is starting."""
    found = facts(Context(now=NOW, since=NOW + 1))
    assert found.state == "starting"
    assert found.messages == ()
    assert (found.epoch, found.epoch_s) == (10, pytest.approx(100))
    assert found.rate is None


def test_killed_run_is_said_to_be_gone() -> None:
    """Its file says «training» for ever."""
    assert facts(Context(now=NOW, alive=False)).state == "gone"
    assert facts(Context(now=NOW, alive=False), state="stopped").state == "stopped"


def test_full_disk_is_warned_of_until_there_is_room() -> None:
    """Other warnings stay."""
    full = {"kind": "storage", "message": "'/kaggle/working' has 3 MB free.", "hint": "Make room."}
    other = {"kind": "warning", "message": "3 images have no labels", "hint": ""}
    both = facts(Context(now=NOW, free=3_000_000), notices=[other, full])
    assert both.warnings == ("3 images have no labels", "'/kaggle/working' has 3 MB free. Make room.")
    assert facts(notices=[other]).warnings == ("3 images have no labels",)
    assert "only 300 MB left" in facts(Context(now=NOW, free=300_000_000)).warnings[0]


@pytest.mark.parametrize(
    ("epoch", "remind", "backup", "reminded"),
    [
        (26, 25, None, True),
        (30, 25, None, True),
        (31, 25, None, False),
        (25, 25, None, False),
        (51, 25, None, True),
        (26, 0, None, False),
        (26, 25, "s3://a/b", False),
    ],
)
def test_reminder_comes_every_so_many_epochs_while_no_backup_is_set(
    epoch: int, remind: int, backup: str | None, reminded: bool
) -> None:
    """It stands for a few epochs, so that someone who looks now and then sees it."""
    found = facts(Context(now=NOW, remind=remind, backup=backup), epoch=epoch, epochs=100)
    assert any("good moment to download" in text for text in found.warnings) == reminded


def test_failed_backup_is_warned_of() -> None:
    """What the backup's own file says."""
    found = compute(status(), rows(10), {"address": "s3://b", "problem": "no credentials"}, AROUND)
    assert found.warnings == ("The last backup failed: no credentials",)
    assert ("Backup", "none yet", "s3://b") in page.tiles(found)


def test_results_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    """A diverged epoch, a column that came later, a torn line."""
    (tmp_path / "results.csv").write_text("epoch,time,train/box_loss,val/box_loss\n1,5,nan,2\n2,9,inf,\n3,")
    assert read_rows(tmp_path) == (
        {"epoch": 1.0, "time": 5.0, "val/box_loss": 2.0},
        {"epoch": 2.0, "time": 9.0},
        {"epoch": 3.0},
    )


def test_results_are_read_again_only_when_they_were_replaced(tmp_path: Path) -> None:
    """Ten times a second would be too often."""
    folder = runs.write(tmp_path, status(), rows(3))
    first = read_rows(folder)
    assert read_rows(folder)[0] is first[0]
    (tmp_path / "new").write_text((tmp_path / "results.csv").read_text().replace("3.0,300", "4.0,300"))
    (tmp_path / "new").rename(tmp_path / "results.csv")
    assert read_rows(folder)[2]["epoch"] == 4


def test_missing_and_foreign_files_are_nothing(tmp_path: Path) -> None:
    """Before the first run there is no folder."""
    assert look(tmp_path / "none", AROUND) == compute({}, (), {}, AROUND)
    (tmp_path / "backup.json").write_text("[1")
    assert look(tmp_path, AROUND).backup == {}


STATES = {
    "nothing": compute({}, (), {}, AROUND),
    "first batch": facts(count=0, epoch=1, batch=1, elapsed_s=0.5, best_map=None, checkpoint={}),
    "one epoch": facts(count=1, epoch=2, batch=1, elapsed_s=100.5),
    "training": facts(Context(now=NOW, gpus=(Gpu("Tesla T4", 9_000_000_000, 15_800_000_000, 97),), free=1)),
    "validating": facts(state="validating", batch=100),
    "stopped": facts(state="stopped"),
    "finished": facts(state="finished", epoch=20, batch=100),
    "failed": facts(Context(now=NOW, failed=True)),
    "gone": facts(Context(now=NOW, alive=False)),
    "diverged": compute(status(losses={"box_loss": None}), tuple({"epoch": float(n)} for n in range(5)), {}, AROUND),
    "long": facts(count=1500, epoch=1501, epochs=2000, elapsed_s=150_050.0),
    "hostile": facts(
        run="<script>alert(1)</script>",
        notices=[{"kind": "warning", "message": "<img src=x onerror=alert(1)>"}],
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_every_state_is_drawn_well_formed_and_without_what_it_does_not_know(name: str) -> None:
    """No nan, no None, no open tag, and nothing from a file becomes markup."""
    drawn = page.render(STATES[name])
    body = drawn.partition("</style>")[2]
    xml.etree.ElementTree.fromstring(body)  # noqa: S314
    for word in ("nan", "None", "inf", "<script", "<img"):
        assert not re.search(rf"\b{word}\b" if word.isalpha() else word, body), word
    text = page.text(STATES[name])
    assert text
    assert "None" not in text


def test_size_does_not_grow_with_the_epochs() -> None:
    """A saved notebook holds one picture, whatever the number of epochs."""
    assert len(page.render(STATES["long"])) < 40_000
    assert len(page.render(facts(sessions=[n / 10 for n in range(1, 1000)], count=1500))) < 45_000


def test_drawing_is_cheap() -> None:
    """Once a second it must stay far below half a percent of a core: 5 ms."""
    began = time.process_time()
    for _ in range(20):
        page.render(STATES["training"])
    assert (time.process_time() - began) / 20 < 0.004


def test_thinned_curve_keeps_its_peaks_and_its_end() -> None:
    """The lowest and the highest of each part, in their order."""
    points = [(float(n), 1.0) for n in range(10_000)]
    points[3333], points[7777] = (3333.0, 9.0), (7777.0, -9.0)
    kept = curves.thin(points)
    assert len(kept) <= 2 * curves.MOST + 1
    assert {(3333.0, 9.0), (7777.0, -9.0), points[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert curves.thin(points[:50]) == points[:50]


def test_gap_in_a_curve_stays_a_gap() -> None:
    """An epoch without a number interrupts the line."""
    line = curves.Line("box", "#000", [(1.0, 1.0), (2.0, 1.1), (3.0, None), (4.0, 1.2), (5.0, 1.3)])
    path = re.findall(r' d="([^"]*)"/>', curves.chart("Losses", [line], 5.0))[-1]
    assert path.count("M") == 2


def test_resume_line_is_drawn_where_a_session_began() -> None:
    """In epochs; what lies outside of the picture is not drawn."""
    drawn = curves.chart("Losses", curves.losses(rows(11), {}, 11.0), 11.0, [6.0, 40.0])
    assert re.findall(r'class="kit-mark" d="M([\d.]+) ', drawn) == ["50.00"]
    assert "resumed" in drawn


def test_current_epoch_moves_the_curve() -> None:
    """Its running mean is the last point, at its place within the epoch."""
    line = curves.losses(rows(3), {"box_loss": 0.9}, 3.4)[0]
    assert line.points[-1] == (3.4, 0.9)


@pytest.mark.parametrize(
    "values", [[0.0], [1.0, 1.0], [-3.0, 5.0], [1e-9, 2e-9], [0.31, 0.3100001], [1e6, 3e6], [0.61, 0.62]]
)
def test_axis_has_round_numbers_and_holds_the_curve(values: list[float]) -> None:
    """Two to seven of them, within the picture."""
    low, high, ticks = curves._scale(values)
    assert low <= min(values) <= max(values) <= high
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high for tick in ticks)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min"), (90_000, "1 d 01 h")],
)
def test_time_is_written_with_its_two_largest_units(seconds: float, words: str) -> None:
    """The smaller one with two digits, so that nothing jumps."""
    assert clock(seconds) == words


def test_bytes_are_written_in_their_unit() -> None:
    """As file managers write them."""
    assert [size(n) for n in (12, 4300, 6_250_000, 684_000_000, 15_800_000_000)] == [
        "12 B",
        "4.3 kB",
        "6.2 MB",
        "684 MB",
        "15.8 GB",
    ]


class FakeDriver:
    """NVIDIA's management library with two GPUs, the second of which keeps its load to itself."""

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, device: Any) -> int:  # noqa: N802
        device._obj.value = 100 + number
        return 0

    def nvmlDeviceGetName(self, device: Any, name: Any, length: int) -> int:  # noqa: N802
        name.value = f"Tesla T4 {device.value}".encode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:  # noqa: N802
        assert ctypes.sizeof(memory._obj) == 24
        memory._obj[:] = 15_000, 12_000, 3_000  # total, free, used
        return 0

    def nvmlDeviceGetUtilizationRates(self, device: Any, load: Any) -> int:  # noqa: N802
        load._obj[:] = 97, 5
        return 0 if device.value == 100 else 3


def test_gpus_are_asked_of_the_driver() -> None:
    """Name, memory and load; a machine without a driver has none."""
    assert gpus.look(FakeDriver()) == (Gpu("Tesla T4 100", 3_000, 15_000, 97), Gpu("Tesla T4 101", 3_000, 15_000, None))
    assert gpus.open_library("libnothing-of-that-name.so") is None
    assert gpus.look(None) == ()
