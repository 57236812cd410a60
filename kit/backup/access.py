"""Keys to stores: where they come from, and what may be said of what they are used for.

They come from the environment or from Kaggle's secrets, and stay in this process's environment, where the clients look
for them under the same names. They are in no setting, no argument and no message.
"""

from __future__ import annotations

import contextlib
import os
import re

from kit.errors import ConfigError

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


def refused(error: BaseException) -> bool:
    """Tell whether a store turned the key away or is not there, which no retry will change."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return (
        isinstance(error, (ConfigError, PermissionError, FileNotFoundError))
        or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "UnauthenticatedError")
        or status in (401, 403)
    )


def describe(error: BaseException) -> str:
    """Say what went wrong without what is secret: no query of a URL, no value of a variable that looks like a key."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name, value in os.environ.items():
        if re.search(r"TOKEN|KEY|SECRET|PASSWORD|FSSPEC_", name):
            for word in re.findall(r'[^"{}:,\s]{6,}', value):  # FSSPEC_* holds several in JSON
                text = text.replace(word, "***")
    return re.sub(r"\?\S+", "?***", text)[:300].rstrip(".") + "."
