"""What a training cell shows from its start to its end, in each kind of front end."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

import kit
from kit.config import Config
from kit.dashboard import errors as errors_module
from kit.dashboard.board import Board, Progress
from kit.dashboard.errors import show_errors
from kit.errors import ConfigError, CrashError, KitError
from kit.kaggle import frontend
from kit.yolo.settings import load
from tests.help import runs


class Screen:
    """A front end that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, html: str, text: str, display_id: str = "", update: bool = False) -> None:
        assert update == (display_id in self.shown), "shown once, then updated in place"
        self.shown[display_id], self.texts[display_id] = html, text
        self.calls.append((display_id.rpartition("-")[2], update))

    def __getitem__(self, name: str) -> str:
        return next(html for key, html in self.shown.items() if key.endswith(name))


@pytest.fixture
def settings(place: Path) -> Config:
    """Of a run that has finished ten epochs."""
    checked = load(None, {"model": "yolov8n.yaml", "data": "shapes"})
    runs.write(checked.run_folder, runs.status(updated=time.time() + 60), runs.rows(10))
    (checked.run_folder / "train.log").write_text("a line\n")
    return checked


def test_cell_holds_two_outputs_however_long_it_runs(settings: Config) -> None:
    """The dashboard and the downloads, each updated in place; nothing is printed."""
    screen = Screen()
    board = Board("live", screen)
    for number in range(50):
        board._next.clear()
        board.follow(f"epoch {number}\n", settings)
    board.close()
    assert len(screen.shown) == 2
    assert screen.calls.count(("board", False)) == screen.calls.count(("files", False)) == 1


def test_display_is_updated_once_a_second_at_most(settings: Config) -> None:
    """However often it is asked to."""
    screen = Screen()
    board = Board("live", screen)
    for _ in range(200):
        board.follow("", settings)
    assert screen.calls.count(("board", True)) <= 1


def test_last_lines_are_shown_whole(settings: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """They come in pieces; a piece of a line waits for its end."""
    screen = Screen()
    board = Board("live", screen)
    board.follow("first li", settings)
    board.follow("ne\nsecond line\nthi", settings)
    board._next.clear()
    board.follow("", settings)
    assert "first line\nsecond line" in screen["board"]
    assert "thi<" not in screen["board"]
    assert capsys.readouterr().out == ""


def test_batch_run_prints_its_lines_and_shows_one_last_card(
    settings: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """The saved file keeps what a display shows at last; there are no second names in the output."""
    (settings.run_folder / "downloads").mkdir()
    (settings.run_folder / "downloads/best-e001-00000000.pt").write_bytes(b"of an interactive session")
    screen = Screen()
    board = Board("batch", screen)
    board.follow("epoch 1/20\n", settings)
    assert capsys.readouterr().out == "epoch 1/20\n"
    assert screen.shown == {}
    board.close()
    assert [call for call, _ in screen.calls] == ["board", "files"]
    assert not (settings.run_folder / "downloads").exists()
    assert not (settings.run_folder / "progress.html").exists()


def test_terminal_gets_the_lines_and_nothing_else(settings: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """As `python -m kit train` does."""
    screen = Screen()
    board = Board("lines", screen)
    board.follow("epoch 1/20\n", settings)
    board.close()
    assert capsys.readouterr().out == "epoch 1/20\n"
    assert screen.shown == {}


def test_fault_of_the_dashboard_does_not_end_training(settings: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told once, and the run's own lines are printed from there."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no socket")

    board = Board("live", broken)
    board.follow("first\n", settings)
    board.follow("second\n", settings)
    board.close()
    printed = capsys.readouterr().out
    assert printed.count("WARNING: The dashboard failed (RuntimeError('no socket')); training goes on") == 1
    assert printed.endswith("first\nsecond\n")


def test_page_of_its_own_is_alive_until_the_end(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """`progress.html` reloads itself while training runs, and no longer; under Notebook 6 never."""
    Board("live", Screen()).follow("", settings)
    assert 'http-equiv="refresh"' not in (settings.run_folder / "progress.html").read_text()
    monkeypatch.setenv("JPY_SESSION_NAME", "train.ipynb")
    board = Board("live", Screen())
    board.follow("", settings)
    page = (settings.run_folder / "progress.html").read_text()
    assert 'http-equiv="refresh"' in page
    assert "Training" in page
    board.close()
    assert 'http-equiv="refresh"' not in (settings.run_folder / "progress.html").read_text()


def test_run_that_ended_with_an_error_is_shown_as_failed(settings: Config) -> None:
    """Its file may say «training» for ever."""
    screen = Screen()
    board = Board("live", screen)
    (settings.run_folder / "checkpoints/latest.pt").write_bytes(b"a checkpoint")
    board.follow("", settings)
    board.close(failed=True)
    assert "<b>Failed</b>" in screen["board"]


def test_run_that_never_began_leaves_the_word_to_the_error(place: Path) -> None:
    """A setting that the trainer refuses: neither an empty dashboard nor empty downloads stand over the box."""
    screen, checked = Screen(), load(None, {"model": "yolov8n.yaml", "data": "shapes"})
    runs.write(checked.run_folder)
    board = Board("live", screen)
    board.follow("", checked)
    board.close(failed=True)
    assert list(screen.shown.values()) == ["", ""]
    batch = Screen()
    board = Board("batch", batch)
    board.follow("", checked)
    board.close(failed=True)
    assert batch.shown == {}


def test_progress_is_a_dict_that_a_notebook_shows_as_the_dashboard(settings: Config) -> None:
    """Of a run that another process trains, or that none does any more."""
    found = kit.progress(model="yolov8n.yaml", data="shapes")
    assert found["epoch"] == 11
    shown = found._repr_mimebundle_()  # type: ignore[attr-defined]
    assert "<b>Training</b>" in shown["text/html"]
    assert "epoch 11/20" in shown["text/plain"]
    old = Progress(settings.run_folder, {**found, "updated": 0.0, "pid": 0})
    runs.write(settings.run_folder, {**old})
    assert "<b>Interrupted</b>" in old._repr_mimebundle_()["text/html"]


def test_progress_of_nothing_says_so(place: Path) -> None:
    """Before the first run."""
    found = kit.progress(model="yolov8n.yaml", data="shapes")
    assert found == {}
    assert re.fullmatch(r"There is no run in \S+/runs/train yet\.", found._repr_mimebundle_()["text/plain"])  # type: ignore[attr-defined]


class Kernel:
    """Stands for IPython's shell in a notebook."""

    kernel = object()
    starting_dir = "/"


def test_error_is_one_red_box_and_its_traceback_one_line(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened, what to do, the end of the log, and a link to all of it."""
    screen, board = Screen(), Board("live", Screen())
    monkeypatch.setattr(errors_module, "shell", Kernel)
    monkeypatch.setattr(errors_module, "show", screen)
    board.follow("", settings)
    error = CrashError("RuntimeError: CUDA error", "Run the cell again: it goes on from the last checkpoint.")
    error.details = "Traceback (most recent call last):\n  File x\nRuntimeError: CUDA error"
    with pytest.raises(KitError) as caught, show_errors(board):
        raise error
    html = screen.shown[""]
    assert html.count("kit-error") >= 1
    assert "<div>RuntimeError: CUDA error</div>" in html
    assert "Run the cell again: it goes on from the last checkpoint." in html
    assert "<details><summary>The end of the log</summary><pre>Traceback" in html
    assert re.search(r'href="[^"]*runs/train/train\.log" download="train\.log"', html)
    assert caught.value._render_traceback_() == ["The box above says what to do."]


def test_error_on_colab_has_no_link_that_leads_nowhere(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page is of another host, which has none of the files; the end of the log is in the box all the same."""
    screen, board = Screen(), Board("live", Screen())
    monkeypatch.setattr(errors_module, "shell", Kernel)
    monkeypatch.setattr(errors_module, "show", screen)
    monkeypatch.setattr(frontend, "shell", type("Shell", (), {"__module__": "google.colab._shell", "kernel": 1}))
    board.follow("", settings)
    error = CrashError("RuntimeError: CUDA error")
    error.details = "the last line"
    with pytest.raises(KitError), show_errors(board):
        raise error
    assert "the last line" in screen.shown[""]
    assert "href=" not in screen.shown[""]


def test_error_in_a_setting_is_a_box_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything was started; there is no log yet."""
    screen = Screen()
    monkeypatch.setattr(errors_module, "shell", Kernel)
    monkeypatch.setattr(errors_module, "show", screen)
    with pytest.raises(ConfigError):
        kit.progress(epohcs=3)
    assert "A setting has to be corrected first" in screen.shown[""]
    assert "Did you mean &#x27;epochs&#x27;?" in screen.shown[""]
    assert "train.log" not in screen.shown[""]


def test_error_in_a_terminal_is_left_as_it_is() -> None:
    """Its one line says it all."""
    with pytest.raises(ConfigError) as caught, show_errors():
        raise ConfigError("There is no setting 'epoch'.")
    assert caught.value._render_traceback_()[0].endswith(" There is no setting 'epoch'.")


@pytest.mark.parametrize(("variable", "colab"), [(None, True), ("KAGGLE_KERNEL_RUN_TYPE", False)])
def test_colab_is_told_by_its_kernel(monkeypatch: pytest.MonkeyPatch, variable: str | None, colab: bool) -> None:
    """Kaggle sets COLAB_RELEASE_TAG and has google-colab installed: neither tells Colab."""
    shell = type("Shell", (), {"__module__": "google.colab._shell", "kernel": 1})
    monkeypatch.setattr(frontend, "shell", shell)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    if variable:
        monkeypatch.setenv(variable, "Interactive")
    assert frontend.on_colab() == colab
    monkeypatch.setattr(frontend, "shell", Kernel)
    assert not frontend.on_colab()
