"""One writer per run folder, and that the folder is still the same one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from pathlib import Path

from kit.errors import BusyError, MovedError
from kit.store.disk_errors import refused

_held: set[Lock] = set()  # by this process
_checking = threading.RLock()


def check_place(path: Path) -> None:
    """Make sure that the folder that a file goes into is still the one that this process has locked.

    Raises:
        MovedError: It was moved away, or another process holds what is in its place.
    """
    for lock in tuple(_held):
        if path.is_relative_to(lock.path.parent):
            lock.check()


class Lock:
    """One writer per run folder, for as long as this process lives.

    POSIX record locks (`fcntl.lockf`) belong to the process and die with it; a `flock` would live on in a forked
    loader worker. The lock is that of the folder and not of its name: see `check`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._lost: MovedError | None = None

    def acquire(self, wait: float = 30.0) -> None:
        """Take the lock.

        Args:
            wait: Seconds to wait for a dying holder.

        Raises:
            BusyError: Another process still holds it; the message says which.
            StorageError: The disk refused.
        """
        give_up = time.monotonic() + wait
        while self._file is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise refused(f"'{self.path}' cannot be locked", error) from error
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file), self.path.stat()):
                    self._file = file
            except FileNotFoundError:
                pass  # who held it has moved the folder away: the next one is that of the folder that is there then
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise refused(f"'{self.path}' cannot be locked", error) from error
                if time.monotonic() >= give_up:
                    holder = os.pread(file, 200, 0).decode(errors="replace").strip()
                    raise BusyError(
                        f"'{self.path.parent}' is in use by {holder or 'another process'}.",
                        "Wait for it to end, stop it, or choose another folder with kit.run=runs/other.",
                    ) from None
                time.sleep(0.2)
            finally:
                if self._file is None:
                    os.close(file)
        _held.add(self)
        holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M')}"
        with contextlib.suppress(OSError):  # it is locked without
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, holder.encode(), 0)

    def check(self) -> None:
        """Make sure that the folder of that name is the one that was locked; one that was deleted is made anew.

        Raises:
            MovedError: It was moved away, or was deleted and another process holds the one that is there now.
        """
        with _checking:
            if not self._lost:
                self._look()
            if self._lost:
                raise MovedError(self._lost.message, self._lost.hint)

    def _look(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                return
        if os.fstat(self._file).st_nlink:
            self._lost = MovedError(
                f"'{self.path.parent}' was moved to '{self._whereabouts()}' while training went on: what was saved is "
                "there.",
                "To go on from it, move it back or choose it with kit.run=, and run again.",
            )
            return
        self.release()
        try:
            self.acquire(wait=0)
        except BusyError as error:
            what = f"The run folder was deleted while training went on, and now {error.message}"
            self._lost = MovedError(what, error.hint)
            _held.add(self)

    def _whereabouts(self) -> Path:
        try:
            return Path(os.readlink(f"/proc/self/fd/{self._file}")).parent
        except OSError:
            return Path("another place")

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back."""
        _held.discard(self)
        if self._file is not None:
            os.close(self._file)  # closing any descriptor of the file drops a record lock
            self._file = None
