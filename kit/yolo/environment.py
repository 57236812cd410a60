"""The environment of a process that imports Ultralytics."""

from __future__ import annotations

import os

from kit.kaggle.session import scratch
from kit.parallel.world import World


def prepare() -> None:
    """Keep Ultralytics offline, silent and inside scratch; call it before the first import of ultralytics.

    Its settings and downloads go to scratch, it does not look for the internet, a model file is read through its
    allow-list of classes, and each of several processes looks like the only one, with settings of its own. A variable
    that is set already is kept, except for the last two.
    """
    home = scratch()
    if number := World.current().local_rank:
        home = home / f"process-{number}"
        home.mkdir(exist_ok=True)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)  # that several train together is the kit's business
    for name, value in {
        "YOLO_CONFIG_DIR": str(home),
        "YOLO_OFFLINE": "true",
        "YOLO_VERBOSE": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS and torch read it once, maybe before Ultralytics sets it
    }.items():
        os.environ.setdefault(name, value)
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "true"
