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
│   └── FullError           memory was full
├── CrashError              1: an exception that the kit does not raise, or a process that ended without a word
└── Stopped                 75: stopped before the end, with a good latest.pt

A message says what happened, with the value, and the `hint` what to do next; they are shown together, and nothing is
recognised by their words. The command line prints them without a traceback; a notebook's box is in
`kit.dashboard.errors`. From one process to another an error travels as `to_dict()`, in a file that the launcher names
and in `status.json`; `from_dict` makes it the same exception again.
"""

from __future__ import annotations


class KitError(Exception):
    """Base of all the kit's exceptions.

    Attributes:
        kind: The stable name of the class, for other processes and the dashboard.
        exit_code: What `python -m kit train` returns for it.
        message: What happened, as a sentence.
        hint: What to do next, as a sentence; empty where nothing is known.
        details: The end of the log, where the message alone does not explain it.
        shown: A notebook has shown it as a box.
    """

    kind = "error"
    exit_code = 1
    details = ""
    shown = False

    def __init__(self, message: str = "", hint: str = "") -> None:
        super().__init__(" ".join(filter(None, [message, hint])))
        self.message, self.hint = message, hint

    def to_dict(self) -> dict[str, str]:
        """Return what another process needs to raise it."""
        return {"kind": self.kind, "message": self.message, "hint": self.hint}

    @classmethod
    def from_dict(cls, values: dict[str, str], exit_code: int) -> KitError:
        """Return the exception that another process has ended with.

        Args:
            values: As `to_dict` returns them.
            exit_code: Of that process.
        """

        def tree(of: type[KitError]) -> list[type[KitError]]:
            return [of, *(each for below in of.__subclasses__() for each in tree(below))]

        kind = next((each for each in tree(KitError) if each.kind == values.get("kind")), KitError)
        error = kind(str(values.get("message", "")), str(values.get("hint", "")))
        error.exit_code = exit_code
        return error

    def _render_traceback_(self) -> list[str]:
        """Show one line in a notebook, where IPython asks for the traceback's text."""
        return ["The box above says what to do."] if self.shown else [f"\x1b[31merror:\x1b[0m {self}"]


class InputError(KitError):
    """What the user gave cannot be used."""

    kind = "input"
    exit_code = 2


class ConfigError(InputError):
    """A setting or a config file is missing, unknown or of the wrong type."""

    kind = "config"


class DataError(InputError):
    """A data set is missing or broken."""

    kind = "data"


class ModelError(InputError):
    """A model file is missing or broken."""

    kind = "model"


class CheckpointError(InputError):
    """A file is not a whole checkpoint of this kit."""

    kind = "checkpoint"


class MismatchError(InputError):
    """A good checkpoint belongs to other settings than the ones given."""

    kind = "mismatch"


class StorageError(InputError):
    """A folder or a disk cannot take what has to be written.

    Attributes:
        full: There is no room for it.
        published: It is in its place all the same, whole; only the disk did not confirm its name.
    """

    kind = "storage"

    def __init__(self, message: str = "", hint: str = "", *, full: bool = False, published: bool = False) -> None:
        super().__init__(message, hint)
        self.full, self.published = full, published


class MovedError(InputError):
    """The run folder is no longer the one that was locked: nothing may be written into what stands in its place."""

    kind = "moved"


class BusyError(KitError):
    """Another process writes into the run folder."""

    kind = "busy"


class LostError(KitError):
    """Another of the processes that train together has ended, or can no longer be reached."""

    kind = "lost"
    exit_code = 76


class DiedError(KitError):
    """A loader worker or the GPU is gone, and this process cannot go on; another one can, from the last checkpoint."""

    kind = "died"
    exit_code = 77


class FullError(DiedError):
    """Memory was full, and the kernel ended a part of training."""

    kind = "memory"


class CrashError(KitError):
    """An exception that the kit does not raise on purpose, or a process that ended without saying why."""

    kind = "crash"


class Stopped(KitError):
    """Training stopped before its end; `latest.pt` is good, and running again goes on."""

    kind = "stopped"
    exit_code = 75
