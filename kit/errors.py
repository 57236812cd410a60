"""Everything that the kit raises on purpose.

KitError                    exit code 1
├── InputError              2: what was given cannot be used; nothing was written or lost
│   ├── ConfigError         a setting or a config file
│   ├── DataError           a data set
│   ├── ModelError          a model file
│   ├── CheckpointError     a file that is no whole checkpoint of this kit
│   ├── MismatchError       a good checkpoint that belongs to other settings
│   ├── StorageError        a folder or a disk that cannot take what has to be written
│   └── MovedError          the run folder was moved away, or another run is in its place
├── BusyError               1: another process holds the run folder
├── LostError               76: another process of the same training has ended; `kit train` exits with that one's code
├── DiedError               77: a part of training was killed; `kit train` starts again from the checkpoint, or exits 1
└── Stopped                 75: stopped before the end, with a good latest.pt

A message says what, the value, and the next step. The command line prints it as one sentence, without a traceback.
"""

from __future__ import annotations


class KitError(Exception):
    """Base of all the kit's exceptions; `exit_code` is what `python -m kit train` returns for it."""

    exit_code = 1
    shown = False  # in a notebook, as a box

    def _render_traceback_(self) -> list[str]:
        """Show one line in a notebook, where IPython asks for the traceback's text."""
        return ["The box above says what to do."] if self.shown else [f"\x1b[31merror:\x1b[0m {self}"]


class InputError(KitError):
    """What the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A setting or a config file is missing, unknown or of the wrong type."""


class DataError(InputError):
    """A data set is missing or broken."""


class ModelError(InputError):
    """A model file is missing or broken."""


class CheckpointError(InputError):
    """A file is not a whole checkpoint of this kit."""


class MismatchError(InputError):
    """A good checkpoint belongs to other settings than the ones given."""


class StorageError(InputError):
    """A folder or a disk cannot take what has to be written.

    Attributes:
        full: There is no room for it.
        published: It is in its place all the same, whole; only the disk did not confirm its name.
    """

    def __init__(self, message: str, *, full: bool = False, published: bool = False) -> None:
        super().__init__(message)
        self.full, self.published = full, published


class MovedError(InputError):
    """The run folder is no longer the one that was locked: nothing may be written into what stands in its place."""


class BusyError(KitError):
    """Another process writes into the run folder."""


class LostError(KitError):
    """Another of the processes that train together has ended, or can no longer be reached."""

    exit_code = 76


class DiedError(KitError):
    """A loader worker or the GPU is gone, and this process cannot go on; another one can, from the last checkpoint."""

    exit_code = 77


class Stopped(KitError):
    """Training stopped before its end; `latest.pt` is good, and running again goes on."""

    exit_code = 75
