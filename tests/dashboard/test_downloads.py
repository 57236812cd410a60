"""Files to take away while training runs: immutable, whole, with the checksum that they have."""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

from kit.dashboard import downloads
from kit.dashboard.downloads import Downloads, Item, link, peek, render, show_downloads
from kit.store import checkpoint, disk


def save(path: Path, epoch: int, best_map: float | None = 0.5, **more: Any) -> bytes:
    """Publish a checkpoint as the writer does, and return its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "config": {"epochs": 20, "lr0": 0.01},
        "architecture": {"names": ["cat", "dog"]},
        "epoch": epoch,
        **more,
        "best_map": best_map,
        "progress": {"epochs": 20},
        "weights": torch.full((1000,), float(epoch)),
    }
    disk.publish(path, lambda file: checkpoint.write(state, file))
    return path.read_bytes()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder after twelve epochs, the tenth of which was the best."""
    folder = tmp_path / "runs/train"
    save(folder / "checkpoints/best.pt", 10)
    save(folder / "checkpoints/latest.pt", 12)
    save(folder / "slim.pt", -1, of_epoch=10)
    (folder / "results.csv").write_text("epoch,time\n1,2\n")
    (folder / "confusion_matrix.png").write_bytes(b"picture")
    return folder


def wait(ready: Downloads) -> None:
    """Poll as a cell does until something new is there."""
    for _ in range(500):
        if ready.poll():
            return
        time.sleep(0.02)
    raise AssertionError("nothing new came")


def test_all_files_are_offered_with_their_facts(run: Path) -> None:
    """Size, checksum, and of a checkpoint the epoch and the best mAP; the names say which one it is."""
    items = {item.name: item for item in Downloads(run).settle()}
    assert list(items) == ["best.pt", "slim-best.pt", "latest.pt", "results.csv", "plots.zip"]
    for item in items.values():
        content = item.path.read_bytes()
        assert (item.sha256, item.size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert item.sha256[:8] in item.path.name
    assert items["best.pt"].path.name == f"best-e010-{items['best.pt'].sha256[:8]}.pt"
    assert [(items[name].epoch, items[name].best_map) for name in ("best.pt", "slim-best.pt", "latest.pt")] == [
        (10, 0.5),
        (10, 0.5),
        (12, 0.5),
    ]


def test_file_that_is_replaced_in_mid_download_arrives_whole(run: Path) -> None:
    """The name that was clicked on keeps its bytes, for as long as the next one is new."""
    old = (run / "checkpoints/latest.pt").read_bytes()
    ready = Downloads(run)
    ready.settle()
    clicked = next(item.path for item in ready.items if item.name == "latest.pt")
    new = save(run / "checkpoints/latest.pt", 13)
    assert clicked.read_bytes() == old
    ready._next = 0.0
    wait(ready)
    item = next(item for item in ready.items if item.name == "latest.pt")
    assert (item.epoch, item.path.read_bytes()) == (13, new)
    assert clicked.read_bytes() == old, "a page that was open may still have the link"
    save(run / "checkpoints/latest.pt", 14)
    ready.settle()
    assert not clicked.exists(), "and then it has to make room"


def test_second_names_take_no_room(run: Path) -> None:
    """They are hard links."""
    for item in Downloads(run).settle():
        if item.name.endswith(".pt"):
            assert item.path.stat().st_nlink == 2


def test_unchanged_file_is_not_hashed_again(run: Path) -> None:
    """The same items come back, and no bytes were read for them."""
    ready = Downloads(run)
    first = ready.settle()
    for item in first:
        os.utime(item.path, ns=(0, item.path.stat().st_mtime_ns))  # reading it would set the time of access
    assert all(a is b for a, b in zip(first, ready.settle(), strict=True))


def test_hashing_large_files_is_paid_for_before_the_next(run: Path) -> None:
    """Two seconds of CPU time: the next look is minutes away, however often the files change."""
    ready = Downloads(run)
    ready._cost = 2.0
    ready.settle()
    assert ready._next > time.monotonic() + 900
    save(run / "checkpoints/latest.pt", 13)
    assert not ready.poll()
    assert ready._job is None


def test_hashing_yields_to_training(run: Path) -> None:
    """It is done by a thread of the lowest priority."""
    ready = Downloads(run)
    ready.poll()
    assert ready._pool is not None
    assert ready._pool.submit(os.getpriority, os.PRIO_PROCESS, 0).result() == 19
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


def test_file_that_was_replaced_while_it_was_hashed_is_looked_at_again(run: Path) -> None:
    """A name never carries the checksum of another file."""
    latest = run / "checkpoints/latest.pt"
    ready = Downloads(run)
    with open(latest, "rb") as file:
        save(latest, 13)
        with pytest.raises(OSError, match="was replaced"):
            ready._link(latest, "latest-e012-00000000.pt", file)
    assert list((run / "downloads").iterdir()) == []


def test_disk_without_hard_links_offers_the_files_themselves(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network disks are."""
    monkeypatch.setattr(disk.DISK, "link", lambda source, target: (_ for _ in ()).throw(PermissionError(1, "no")))
    found = {item.name: item.path for item in Downloads(run).settle()}
    assert found["best.pt"] == run / "checkpoints/best.pt"


def test_what_others_put_beside_the_downloads_stays(run: Path) -> None:
    """Jupyter makes a folder where it lists files, and a user may drop something."""
    ready = Downloads(run)
    ready.settle()
    (run / "downloads/.ipynb_checkpoints").mkdir()
    (run / "downloads/notes.txt").write_text("mine")
    (run / "results.csv").write_text("epoch,time\n1,2\n2,4\n")
    ready.settle()
    ready.settle()
    ready.clear()
    assert {path.name for path in (run / "downloads").iterdir()} == {".ipynb_checkpoints", "notes.txt"}


def test_batch_run_has_no_second_names(run: Path) -> None:
    """The saved output would hold the files twice; those of an interactive session before are removed."""
    Downloads(run).settle()
    assert (run / "downloads").is_dir()
    batch = Downloads(run, second_names=False)
    batch.clear()
    assert {item.path for item in batch.settle()} == {
        run / "checkpoints/best.pt",
        run / "checkpoints/latest.pt",
        run / "slim.pt",
        run / "results.csv",
    }
    assert not (run / "downloads").exists()


def test_pictures_come_as_one_file(run: Path) -> None:
    """Packed anew only when one has changed; the same pictures make the same bytes."""
    ready = Downloads(run)
    first = next(item for item in ready.settle() if item.name == "plots.zip")
    assert zipfile.ZipFile(first.path).namelist() == ["confusion_matrix.png"]
    assert next(item for item in Downloads(run).settle() if item.name == "plots.zip").sha256 == first.sha256
    (run / "results").mkdir()
    (run / "results/predictions.jpg").write_bytes(b"another")
    second = next(item for item in ready.settle() if item.name == "plots.zip")
    assert zipfile.ZipFile(second.path).namelist() == ["confusion_matrix.png", "results/predictions.jpg"]


def test_nothing_there_yet_is_said(tmp_path: Path) -> None:
    """In the first minutes of a run."""
    html, text = render(Downloads(tmp_path))
    assert "not there yet" in html
    assert "not there yet" in text


@pytest.mark.parametrize("start", ["", "notebooks", "notebooks/my work/100%"])
def test_link_leads_from_the_notebooks_folder_to_the_file(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, quoted, with the attribute `download`: the one form that works everywhere."""
    monkeypatch.setattr(downloads, "start_folder", lambda: tmp_path / start)
    target = tmp_path / "runs/my train#1/downloads/best-e010-abcdef12.pt"
    found = re.fullmatch(r'<a href="([^"]*)" download="best\.pt">best\.pt</a>', link(target, "best.pt"))
    assert found
    assert "://" not in found[1]
    assert not found[1].startswith("/")
    assert os.path.normpath(tmp_path / start / unquote(found[1])) == str(target)


def test_names_cannot_break_out_of_the_link(tmp_path: Path) -> None:
    """A run folder may be called anything."""
    drawn = link(tmp_path / 'a"><script>', 'b"><script>')
    assert "<script>" not in drawn


def test_facts_of_a_checkpoint_are_read_without_unpickling(tmp_path: Path) -> None:
    """Neither tensors nor code are touched."""
    path = tmp_path / "a.pt"
    save(path, 7, None)
    with open(path, "rb") as file:
        assert peek(file) == {"epoch": 7}
    assert peek(io.BytesIO(b"no zip")) == {}


def test_ways_without_a_link_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Kaggle the Output tab and the kaggle command; elsewhere the folder."""
    ready = Downloads(run)
    ready.items = [Item("best.pt", run / "checkpoints/best.pt", 1, "0" * 64, 1, 0.5, "")]
    monkeypatch.setenv("KIT_WORKING", str(run.parent.parent))
    assert "Or take them from runs/train/checkpoints in the working folder." in render(ready)[1]
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    text = render(ready)[1]
    assert "Output tab, under runs/train/checkpoints" in text
    assert "kaggle kernels output YOUR-NAME/NOTEBOOK --file-pattern 'runs/train/checkpoints/(best|latest)'" in text


def test_log_and_live_page_are_a_click_away(run: Path) -> None:
    """Where they are there."""
    ready = Downloads(run)
    ready.settle()
    assert "train.log" not in render(ready)[0]
    (run / "train.log").write_text("line\n")
    (run / "progress.html").write_text("page\n")
    html = render(ready)[0]
    assert re.search(r'href="[^"]*train\.log" download="train\.log"', html)
    assert re.search(r'href="[^"]*progress\.html" target="_blank"', html)


def test_without_a_front_end_the_paths_are_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a terminal."""
    show_downloads(run)
    printed = capsys.readouterr().out
    assert re.search(
        r"best\.pt: \S+/best-e010-\w{8}\.pt \([\d.]+ kB, epoch 10, best mAP 0\.5000, sha256 \w{64}\)", printed
    )
