"""Train YOLO detectors on Kaggle, lose the session, run the notebook again: training goes on.

    import kit

    kit.doctor()                                    # where am I, what would stop training
    result = kit.train(model="yolo11n.pt", data="/kaggle/input/my-data/data.yaml", epochs=100)
    kit.progress()                                  # how a run stands, from any notebook
    kit.downloads()                                 # links to best.pt and latest.pt
    kit.results()                                   # how good best.pt is, with pictures

Nothing here imports torch: training runs in a process of its own. And importing this imports nothing beyond the
standard library, because `kit.kaggle.bootstrap` has to run before anything is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import ConfigError, KitError

if TYPE_CHECKING:
    from kit.config import Config

__all__ = ["KitError", "doctor", "downloads", "progress", "results", "train", "verify"]


def train(config: str | Path | None = None, resume: str | Path | bool = "auto", **settings: Any) -> dict[str, Any]:
    """Train, going on from the newest good checkpoint; the cell shows the progress and returns when training ends.

    Args:
        config: A YAML file; default `configs/kaggle_config.yaml` on Kaggle, else `configs/quickstart.yaml`.
        resume: `auto` or True, `never` or False (start fresh, the old run is kept aside) or the path of a checkpoint.
        settings: Ultralytics' settings by name, and the kit's as `kit={"session_hours": 9}`.

    Returns:
        The last of `status.json`; its `state` is `finished` or `stopped`.

    Raises:
        KitError: Something given cannot be used, or training failed; the message says what to do.
    """
    from kit import config as settings_of
    from kit.dashboard import Board, show_errors
    from kit.process import launch

    board = Board()
    with show_errors(board):
        chosen = {"True": "auto", "None": "auto", "False": "never"}.get(str(resume), str(resume))
        outcome = launch.run(config, settings_of.to_args(_dotted(settings)), chosen, board.follow)
        board.close(failed=bool(outcome.error))
        if outcome.error:
            raise outcome.error
    return outcome.status


def progress(config: str | Path | None = None, **settings: Any) -> dict[str, Any]:
    """Return what the run last said, empty where there is none yet; a notebook shows it as the dashboard."""
    from kit.dashboard import Progress, show_errors
    from kit.run import status

    with show_errors():
        folder = _load(config, settings).run_folder
        return Progress(folder, status.read(folder))


def downloads(config: str | Path | None = None, **settings: Any) -> None:
    """Show links to `best.pt`, `latest.pt` and the rest, with size, epoch, mAP and checksum."""
    from kit.dashboard import show_downloads, show_errors

    with show_errors():
        show_downloads(_load(config, settings).run_folder)


def results(config: str | Path | None = None, **settings: Any) -> None:
    """Show how good `best.pt` is: predictions on validation images, curves, mistakes, and the mAP of each class.

    It is measured once for each `best.pt`, in a process of its own, and kept in the run folder's `results`.

    Raises:
        KitError: There is no best.pt yet, or it could not be measured.
    """
    from kit import config as settings_of
    from kit.dashboard import show_errors, show_results
    from kit.process import launch

    with show_errors():
        show_results(lambda: launch.measure(config, settings_of.to_args(_dotted(settings))))


def verify(path: str | Path) -> None:
    """Compare every byte of a checkpoint with its checksums.

    Raises:
        KitError: It is missing or damaged.
    """
    from kit.store import trust

    trust.verify(Path(path))


def doctor(config: str | Path | None = None, **settings: Any) -> None:
    """Show where this is, what it has, and what would stop training; nothing that is found is raised."""
    from kit.preflight import report

    report.show(report.findings(config, _dotted(settings)))


def _load(config: str | Path | None, settings: dict[str, Any]) -> Config:
    from kit.yolo.settings import load

    return load(config, _dotted(settings))


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """Write the block `kit={...}` as settings with dotted names.

    Raises:
        ConfigError: It is no block.
    """
    own = settings.get("kit") or {}
    if not isinstance(own, Mapping):
        raise ConfigError(f"kit= must be the kit's settings by name, as kit={{'run': 'runs/train'}}, but got {own!r}.")
    return {
        **{k: v for k, v in settings.items() if k != "kit"},
        **{f"kit.{name}": value for name, value in own.items()},
    }
