"""Train YOLO detectors on Kaggle, lose the session, run the notebook again: training goes on.

    import kit

    kit.doctor()                                    # where am I, what would stop training
    result = kit.train(model="yolo11n.pt", data="/kaggle/input/my-data/data.yaml", epochs=100)
    kit.downloads()                                 # links to best.pt and latest.pt

Nothing here imports torch: training runs in a process of its own. And importing this imports nothing beyond the
standard library, because `kit.bootstrap` has to run before anything is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import KitError

if TYPE_CHECKING:
    from kit.config import Config

__all__ = ["KitError", "doctor", "downloads", "progress", "train", "verify"]


def train(config: str | Path | None = None, resume: str = "auto", **settings: Any) -> dict[str, Any]:
    """Train, going on from the newest good checkpoint; the cell shows the progress and returns when training ends.

    Args:
        config: A YAML file; default `configs/kaggle_config.yaml` on Kaggle, else `configs/quickstart.yaml`.
        resume: `auto`, `never` (start anew, the old run is kept aside) or the path of a checkpoint.
        settings: Ultralytics' settings by name, and the kit's as `kit={"session_hours": 9}`.

    Returns:
        The last of `status.json`; its `state` is `finished` or `stopped`.

    Raises:
        KitError: Something given cannot be used, or training failed; the message says what to do.
    """
    from kit import config as settings_of, launch
    from kit.dashboard import Dashboard

    words = settings_of.to_words(_dotted(settings))
    board: list[Dashboard] = []

    def follow(text: str, checked: Config) -> None:
        if not board:
            board.append(Dashboard(checked.run_folder))
        if text:
            print(text, end="", flush=True)
        board[0].update()

    outcome = launch.run(config, words, resume, follow)
    if board:
        board[0].update(now=True)
    if outcome.error:
        raise KitError(outcome.error)
    return outcome.status


def progress(config: str | Path | None = None, **settings: Any) -> dict[str, Any]:
    """Return what the run last said; empty where there is none yet."""
    from kit import status

    return status.read(_load(config, settings).run_folder)


def downloads(config: str | Path | None = None, **settings: Any) -> None:
    """Show links to `best.pt` and `latest.pt`."""
    from kit.dashboard import downloads as show

    show(_load(config, settings).run_folder)


def verify(path: str | Path) -> None:
    """Compare every byte of a checkpoint with its checksums.

    Raises:
        KitError: It is missing or damaged.
    """
    from kit import storage

    storage.verify(Path(path))


def doctor(config: str | Path | None = None, **settings: Any) -> None:
    """Show where this is, what it has, and what would stop training; nothing that is found is raised."""
    from kit import report

    report.show(report.findings(config, _dotted(settings)))


def _load(config: str | Path | None, settings: dict[str, Any]) -> Config:
    from kit.config import load

    return load(config, _dotted(settings))


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """Write the block `kit={...}` as settings with dotted names."""
    own = settings.get("kit") or {}
    return {
        **{k: v for k, v in settings.items() if k != "kit"},
        **{f"kit.{name}": value for name, value in own.items()},
    }
