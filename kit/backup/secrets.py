"""Keys to stores, and what to do when a store fails: retry, give up, describe.

Keys come from the environment or from Kaggle's secrets, and stay in this process's environment, where the clients look
for them under the same names. They are in no setting, no argument and no message.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from kit.errors import ConfigError, KitError

SECRETS = {  # what the clients read from the environment, by scheme; FSSPEC_<SCHEME> holds any option as JSON
    "kaggle": ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"),
    "hf": ("HF_TOKEN",),
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"),
}


def take_secrets(scheme: str) -> None:
    """Put Kaggle's secrets into this process's environment, where the client looks; what is set there stays."""
    try:
        from kaggle_secrets import UserSecretsClient
    except ImportError:
        return  # not on Kaggle
    client = UserSecretsClient()
    for name in (*SECRETS.get(scheme, ()), f"FSSPEC_{scheme.upper()}"):
        if name not in os.environ:
            with contextlib.suppress(Exception):  # there is no such secret, or it is not attached to this notebook
                os.environ[name] = client.get_secret(name)


class NotReadyError(KitError):
    """A store cannot tell yet what it holds: it still works on what it got, or its answers do not fit together."""


def status(error: BaseException) -> int | None:
    """Return the HTTP status of a store's answer, where a client's error has it."""
    return getattr(getattr(error, "response", None), "status_code", None)


def refused(error: BaseException) -> bool:
    """Tell whether a store does not know the key or is not there, which no retry will change."""
    answer = getattr(error.__cause__, "response", None)  # of S3
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return (
        isinstance(error, (ConfigError, FileNotFoundError))
        or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "UnauthenticatedError")
        or status(error) == 401
        or code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")
    )


def denied(error: BaseException) -> bool:
    """Tell whether a store turned the key away, which may pass: some answer so while they are busy."""
    return isinstance(error, PermissionError) or status(error) == 403


def missing(error: BaseException) -> bool:
    """Tell whether a store answered that it has no such file."""
    return isinstance(error, FileNotFoundError) or status(error) == 404


T = TypeVar("T")


def patiently(
    ask: Callable[[], T],
    seconds: float,
    waiting: Callable[[str], None],
    hopeless: Callable[[Exception, int], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Return what a call to a store returns; where it fails call it again, after growing pauses of so many seconds.

    `waiting` is told of the first error that a pause follows, in words; `hopeless` tells from an error and the number
    of calls whether to give up. The last error of the call is raised.
    """
    left, pause, calls = seconds, 1.0, 0
    while True:
        try:
            return ask()
        except Exception as error:
            calls += 1
            if hopeless(error, calls) or pause > left:
                raise
            if calls == 1:
                waiting(describe(error))
        sleep(pause)
        left, pause = left - pause, min(2 * pause, 60.0)


@contextlib.contextmanager
def limit(seconds: int, give_up: Callable[[], int]) -> Iterator[None]:
    """End the process after some time, whatever a client is in the middle of; it may catch any exception."""
    signal.signal(signal.SIGALRM, leave(give_up))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def leave(give_up: Callable[[], int]) -> Callable[[int, object], None]:
    """Return a signal handler that ends the process at once, with the exit code that `give_up` returns."""

    def handler(number: int, frame: object) -> None:
        os._exit(give_up())

    return handler


def describe(error: BaseException) -> str:
    """Say what went wrong without what is secret: no query of a URL, no value of a variable that looks like a key."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name, value in os.environ.items():
        if re.search(r"TOKEN|KEY|SECRET|PASSWORD|FSSPEC_", name):
            for word in re.findall(r'[^"{}:,\s]{6,}', value):  # FSSPEC_* holds several in JSON
                text = text.replace(word, "***")
    return re.sub(r"\?\S+", "?***", text)[:300].rstrip(".") + "."
