"""The workers of a loader, as the training process sees them: it polls for a stop while it waits, and reports a loss.

torch raises the loss of a worker from a signal handler, at whatever line the process happens to be: in a save, in a
picture whose failure is left out, in an exchange with other processes. Here it is checked where a batch is fetched.
torch waits for a batch, and for the end of a worker, without limit: a worker that hangs (on a lock that a killed one
held, on a mount that does not answer) would hang the process.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from kit.errors import DiedError
from kit.kaggle import deaths, machine
from kit.yolo import upstream

POLL_S = 1.0  # seconds of waiting for a batch after which a stop is polled for
CLOSE_S = 5.0  # seconds that workers have to end by themselves


class Workers:
    """Stands in for the iterator of one of Ultralytics' loaders, which fetches batches from worker processes.

    Args:
        loader: The loader.
        waiting: Called every `POLL_S` of waiting for a batch, with the seconds so far; what it raises ends the wait.
    """

    def __init__(self, loader: Any, waiting: Callable[[float], None]) -> None:
        loader.timeout = POLL_S
        self._waiting, self._kills = waiting, machine.oom_kills()
        iterator: Any = upstream.own_iterator(loader)
        self._stock, self._workers = iterator, iterator._workers
        self._pinning = getattr(iterator, "_pin_memory_thread", None)  # on a GPU
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # no error out of torch's handler

    def __next__(self) -> Any:
        """Return the next batch.

        Raises:
            DiedError: A worker is gone.
        """
        began = time.monotonic()
        while True:
            self._check()
            try:
                return next(self._stock)
            except RuntimeError as error:
                if "timed out after" not in str(error):
                    self._check(patience=POLL_S)
                    raise
                self._waiting(time.monotonic() - began)
            except (OSError, EOFError):  # what a worker has sent is fetched from itself
                self._check(patience=POLL_S)
                raise

    def _check(self, patience: float = 0.0) -> None:
        """Check that no worker is gone; for some seconds, where one may be about to end."""
        give_up = time.monotonic() + patience
        while True:
            for number, worker in enumerate(self._workers, 1):
                if (code := worker.exitcode) is not None:
                    who = f"Loader worker {number} of {len(self._workers)}"
                    raise deaths.lost(who, code, self._kills)
            if self._pinning is not None and not self._pinning.is_alive():  # torch looks only where it has no timeout
                raise DiedError("The thread that copies batches into memory for the GPU has ended.", deaths.AGAIN)
            if time.monotonic() >= give_up:
                return
            time.sleep(0.01)

    def _shutdown_workers(self) -> None:
        """End the workers, as Ultralytics' loader asks for; those that hang, and all where one is lost, by SIGKILL."""
        if any(worker.exitcode is not None for worker in self._workers):
            self._kill()  # it may have held what the others, and torch's own end of them, would wait for
            return
        timer = threading.Timer(CLOSE_S, self._kill)
        timer.daemon = True
        timer.start()
        try:
            self._stock._shutdown_workers()
        finally:
            timer.cancel()
            self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
