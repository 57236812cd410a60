"""Which store an address means.

A store keeps backups of runs: two files and a manifest that names them with their checksums. Payload first, manifest
last: whoever reads trusts only what a whole manifest names, so an upload that was cut off leaves the backup before it.
Its methods, which `kit.backup.files.Files` describes, raise their client's own errors. What is true of all stores is in
`kit.backup.upload` and `kit.backup.restore`: which backup may follow which, that it is read back, how many are kept.
"""

from __future__ import annotations

from kit.backup.files import Files
from kit.backup.huggingface import Repository
from kit.backup.kaggle import DataSet
from kit.backup.secrets import take_secrets
from kit.errors import ConfigError

CLIENTS = {"kaggle": "kagglehub", "hf": "huggingface_hub", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
Store = Files | DataSet


def open_store(address: str) -> Store:
    """Open the store of a `kit.backup` that `kit.config` has checked; nothing is looked up in it yet.

    Raises:
        ConfigError: The client for it is not installed, or there is none for such an address.
    """
    scheme = address.partition("://")[0]
    kind: type[Store] = {"kaggle": DataSet, "hf": Repository}.get(scheme, Files)  # type: ignore[assignment]
    take_secrets(scheme)
    try:
        return kind(address)
    except (ImportError, ValueError) as error:  # fsspec's word for a scheme it does not know is ValueError
        package = CLIENTS.get(scheme, "fsspec" if getattr(error, "name", "") == "fsspec" else "")
        schemes = "See https://filesystem-spec.readthedocs.io for the schemes."
        hint = f"Run `pip install {package}`." if package else schemes
        raise ConfigError(f"kit.backup={address} cannot be used: {str(error).rstrip('.')}.", hint) from error
