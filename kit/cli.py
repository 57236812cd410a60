"""The command line: `python -m kit train | status | results | find | verify | export | doctor | notebook`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit.errors import InputError, KitError
from kit.preflight import report
from kit.preflight.checks import STOP
from kit.process import backups, worker
from kit.run import status
from kit.store import disk, trust
from kit.yolo import environment
from kit.yolo.settings import load


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 good, 75 stopped and resumable, 2 bad input, 1 anything else."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if more and (not hasattr(options, "settings") or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # settings after an option: argparse takes one row of words only
        options.settings += more
    try:
        code: int = options.command(options)
        return code
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kit", description=__doc__.partition(":")[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    train = command("train", _train, "Train, going on from the newest good checkpoint.")
    train.add_argument(
        "--config", metavar="FILE", help="default: configs/kaggle_config.yaml on Kaggle, else quickstart"
    )
    train.add_argument("--resume", default="auto", metavar="auto|never|FILE", help="default: auto")
    train.add_argument("settings", nargs="*", metavar="key=value", help="an Ultralytics setting, or kit.NAME")
    for role, function in (("worker", _worker), ("backups", _backups), ("measure", _measure)):  # the launcher's own
        added = commands.add_parser(role)
        added.set_defaults(command=function)
        if role == "backups":
            added.add_argument("task", choices=(backups.FETCH, backups.KEEP))
        for option in ("--config", "--resume"):
            added.add_argument(option)
        added.add_argument("--ended", type=Path)
        added.add_argument("--notices", type=json.loads, default=[])
        added.add_argument("settings", nargs="*")
    for name, function, text in (
        ("status", _status, "Say how a run is getting on."),
        ("results", _results, "Measure the best model: pictures and results.json in the run folder's results."),
        ("find", _find, "List the checkpoints within reach, and which one a resume takes."),
        ("doctor", _doctor, "Say where this is, what it has, and what would stop training."),
    ):
        added = command(name, function, text)
        added.add_argument("--config", metavar="FILE")
        added.add_argument("settings", nargs="*", metavar="key=value")
        added.add_argument("--json", action="store_true", help="print JSON")
    command("verify", _verify, "Compare every byte of checkpoints with their checksums.").add_argument(
        "files", nargs="+", type=Path, metavar="FILE"
    )
    export = command(
        "export", _export, "Write the model of a checkpoint alone, for YOLO(): small, and without optimizer."
    )
    export.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: latest.pt of the run")
    export.add_argument("out", nargs="?", type=Path, metavar="OUT", help="default: last.pt in the run folder")
    export.add_argument("--config", metavar="FILE")
    command("notebook", _notebook, "Write notebooks/train.ipynb anew.")
    return parser


def _train(options: argparse.Namespace) -> int:
    if worker.under_torchrun():  # that the user has started
        return worker.main(load(options.config, options.settings), options.resume)
    from kit.process import launch

    def follow(text: str, config: object) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return launch.run(options.config, options.settings, options.resume, follow).code


def _worker(options: argparse.Namespace) -> int:
    config = load(options.config, options.settings)
    return worker.main(config, options.resume, options.ended, options.notices)


def _backups(options: argparse.Namespace) -> int:
    config = load(options.config, options.settings)
    return backups.main(options.task, config, options.resume, options.ended)


def _measure(options: argparse.Namespace) -> int:
    return worker.measure(load(options.config, options.settings), options.ended)


def _status(options: argparse.Namespace) -> int:
    folder = load(options.config, options.settings).run_folder
    values = status.read(folder)
    if options.json:
        print(json.dumps(values, indent=1))
    elif not values:
        print(f"No run in {folder} yet.")
    else:
        place = f"epoch {values.get('epoch', 0)}/{values.get('epochs')}, batch {values.get('batch', 0)}"
        print(
            f"{folder}: {values.get('state')}, {place}/{values.get('batches', '?')}, best mAP {values.get('best_map')}"
        )
    return 0


def _results(options: argparse.Namespace) -> int:
    from kit.process import launch
    from kit.run import scores

    values = scores.read(launch.measure(options.config, options.settings))
    if options.json:
        print(json.dumps(values, indent=1))
        return 0
    from kit.dashboard.results import text

    print(text(values))
    return 0


def _find(options: argparse.Namespace) -> int:
    from kit.run import discovery

    config = load(options.config, options.settings)
    environment.prepare()
    from kit.yolo.identity import identify

    try:
        _, identity = identify(config, elsewhere=True)
        verdicts = discovery.judge(config, identity)
    except InputError as error:  # no data set attached, or another run in the folder: what is there is still told
        print(f"warning: {error}", file=sys.stderr)
        verdicts = [discovery.Verdict(found, reason=found.problem) for found in discovery.scan(config)]
    if options.json:
        print(json.dumps([verdict.to_dict() for verdict in verdicts], indent=1))
        return 0
    for verdict in verdicts:
        found = verdict.candidate
        place = f" ({found.summary.position})" if found.summary else ""
        word = "taken" if verdict.taken else f"{verdict.reason or 'good'} {found.hint}".rstrip()
        print(f"{'->' if verdict.taken else '  '} {found.path}{place}: {word}")
    if not verdicts:
        print("No checkpoint found.")
    return 0


def _verify(options: argparse.Namespace) -> int:
    worst = 0
    for path in options.files:
        try:
            trust.verify(path)
            print(f"{path}: good")
        except KitError as error:
            print(error)
            worst = error.exit_code
    return worst


def _export(options: argparse.Namespace) -> int:
    folder = load(options.config).files
    environment.prepare()
    from kit.store import checkpoint
    from kit.yolo import export, models
    from kit.yolo.train import quiet

    quiet()
    source, target = options.file or folder.latest, options.out or folder.last
    state = export.export(checkpoint.read(source, models.open_checkpoint))
    disk.publish(target, lambda file: checkpoint.write(state, file))
    print(f"{target}: the model after epoch {state['of_epoch']}, for YOLO('{target}')")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    found = report.findings(options.config, options.settings)
    seen = list(found) if options.json else report.show(found)
    if options.json:
        print(json.dumps([asdict(finding) for finding in seen], indent=1))
    return InputError.exit_code if any(finding.level == STOP for finding in seen) else 0


def _notebook(options: argparse.Namespace) -> int:
    from kit.kaggle import notebook

    print(notebook.write())
    return 0
