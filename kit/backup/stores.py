"""The interface of a backup store, and which store an address means.

A store keeps backups of runs: two files and a manifest that names them with their checksums. Payload first, manifest
last: whoever reads trusts only what a whole manifest names, so an upload that was cut off leaves the backup before it.
What is true of all of them stands in `kit.backup.upload` and `kit.backup.restore`: which backup may follow which, that
it is read back, and how many are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from kit.backup.files import Files
from kit.backup.huggingface import Repository
from kit.backup.kaggle import DataSet
from kit.backup.manifests import Manifest
from kit.backup.secrets import take_secrets
from kit.errors import ConfigError

CLIENTS = {"kaggle": "kagglehub", "hf": "huggingface_hub", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}


class Store(Protocol):
    """A place for backups; each method raises its client's own errors.

    Attributes:
        pause: Least seconds between two uploads.
        shared: Whether several runs have room beside each other; without, every upload holds all of its files.
        odd: Names of what should be a manifest and is none, as far as they were met.
    """

    pause: float
    shared: bool
    odd: set[str]

    def check(self) -> None:
        """Prove that it can be written."""

    def manifests(self, run: str | None = None) -> list[Manifest]:
        """Return all whole manifests, the latest upload first; of one run only, where several lie there.

        It is an error, and not an empty list, where what is there cannot be told just now.
        """

    def push(self, manifest: Manifest, paths: dict[str, Path]) -> None:
        """Upload files and then the manifest; what is there already stays.

        Args:
            manifest: Its `files` tell size and SHA-256 of each of `paths`, and of what is there already.
            paths: The files by name, alone in their folder; they do not change meanwhile.
        """

    def checksum(self, manifest: Manifest, name: str) -> str:
        """Return the SHA-256 of a file as it lies there, from its bytes, or from what the store made of its bytes."""

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        """Download one file of a manifest that `manifests` has returned."""

    def prune(self, run: str, kept: list[Manifest]) -> None:
        """Remove what a run does not need but for these of its backups, and any that came after them."""


def open_store(address: str) -> Store:
    """Open a store; nothing is looked up in it yet.

    Args:
        address: `kit.backup`, as `kit.config` has checked it.

    Raises:
        ConfigError: The client for it is not installed, or there is none for such an address.
    """
    scheme = address.partition("://")[0]
    kind: type[DataSet | Files] = {"kaggle": DataSet, "hf": Repository}.get(scheme, Files)  # type: ignore[assignment]
    take_secrets(scheme)
    try:
        return kind(address)
    except (ImportError, ValueError) as error:  # fsspec's word for a scheme it does not know is ValueError
        package = CLIENTS.get(scheme, "fsspec" if getattr(error, "name", "") == "fsspec" else "")
        schemes = "See https://filesystem-spec.readthedocs.io for the schemes."
        hint = f"Run `pip install {package}`." if package else schemes
        raise ConfigError(f"kit.backup={address} cannot be used: {str(error).rstrip('.')}.", hint) from error
