"""Which process this is among those that train together."""

from __future__ import annotations

import os
from typing import NamedTuple


class World(NamedTuple):
    """This process among those that train together, counted as torchrun does: over all machines, and on this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def current(cls) -> World:
        """Return which of torchrun's processes this is; ask before `kit.yolo.environment.prepare`."""
        if not {"TORCHELASTIC_RUN_ID", "RANK"} <= os.environ.keys():
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
