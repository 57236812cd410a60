"""Backups in a Kaggle data set."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from kit.backup.manifests import Manifest, read
from kit.backup.secrets import SECRETS, NotReadyError, status
from kit.errors import ConfigError
from kit.kaggle import session
from kit.store import disk
from kit.store.folder import LATEST
from kit.store.peek import checksum

MANIFEST = "manifest.json"
LOOKED_AT = 3  # versions, from the one that may come next to the one before


class DataSet:
    """A Kaggle data set, `kaggle://owner/slug`: one run, under plain names, so that it can also be attached.

    Every upload is a version that holds all of its files; earlier ones stay until they are deleted on its page. Kaggle
    takes minutes to make a version ready.
    """

    pause, shared = 900.0, False

    def __init__(self, address: str) -> None:
        os.environ["DISABLE_KAGGLE_CACHE"] = "true"  # on Kaggle a download would mount the data set, and wait for that
        os.environ.setdefault("KAGGLEHUB_CACHE", str(session.scratch() / "kagglehub"))
        if os.environ.keys() & set(SECRETS["kaggle"]):
            os.environ.pop("KAGGLE_API_V1_TOKEN", None)  # the notebook's own, which kagglehub takes first
        import kagglehub

        self.hub = kagglehub
        self.handle = address.partition("://")[2]
        self.odd: set[str] = set()
        self._versions: dict[str, int] = {}  # by the checksum of latest.pt

    def check(self) -> None:
        """Look for a token; whether Kaggle takes it shows when the manifest is asked for.

        Raises:
            ConfigError: There is none.
        """
        from kagglehub.config import get_kaggle_credentials

        if get_kaggle_credentials() is None:
            raise ConfigError(
                "There is no token for Kaggle.",
                "Set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, in the secrets or the environment.",
            )

    def manifests(self, run: str | None = None) -> list[Manifest]:
        """Return the manifests of the newest versions, whichever runs they are of; none where there is no data set.

        Raises:
            NotReadyError: Kaggle still works on the newest version, or turns the key away for now.
        """
        newest, found = self._newest(), list[Manifest]()
        for version in range(newest + 1, max(newest + 1 - LOOKED_AT, 0), -1) if newest else ():
            try:
                manifest = read(partial(self._manifest, version), listed=version <= newest)
            except Exception as error:
                if status(error) not in (403, 404):
                    raise
                if version == newest and status(error) == 403 and not found:
                    raise NotReadyError(f"Kaggle has not made version {version} of the data set ready.") from error
                continue  # there is no such version, or no backup in it
            if manifest is None:
                self.odd.add(f"{MANIFEST} of version {version}")
                continue
            self._versions[manifest["files"][LATEST]["sha256"]] = version
            found.append(manifest)
        return found

    def push(self, manifest: Manifest, paths: dict[str, Path]) -> None:
        """Upload the files and the manifest as a new version."""
        folder = next(iter(paths.values())).parent
        disk.write_json(folder / MANIFEST, manifest)
        self.hub.dataset_upload(self.handle, str(folder), f"epoch {manifest['epoch']}, step {manifest['step']}")

    def checksum(self, manifest: Manifest, name: str) -> str:
        """Download a file and return its SHA-256."""
        with tempfile.TemporaryDirectory(dir=session.scratch()) as folder:
            self.fetch(manifest, name, Path(folder) / name)
            return checksum(Path(folder) / name)

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        """Download one file of a version."""
        fetched = self._download(name, self._versions[manifest["files"][LATEST]["sha256"]])
        disk.copy(fetched, target)
        disk.remove(fetched)

    def prune(self, run: str, kept: list[Manifest]) -> None:
        """Remove nothing: a version can only be deleted on the data set's page."""

    def _manifest(self, version: int) -> bytes:
        return self._download(MANIFEST, version).read_bytes()

    def _download(self, name: str, version: int) -> Path:
        return Path(self.hub.dataset_download(f"{self.handle}/versions/{version}", name, force_download=True))

    def _newest(self) -> int:
        """Return the number of the newest version; 0 where there is no data set.

        Kaggle answers 403 for one that is not there, for one that it still works on, and for a key that may not; so
        the list of this user's own ones has to tell them apart.
        """
        from kagglehub.clients import build_kaggle_client
        from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest, ApiListDatasetsRequest
        from kagglesdk.datasets.types.dataset_enums import DatasetSelectionGroup

        with build_kaggle_client() as client:
            ask: Any = client.datasets.dataset_api_client
            one = ApiGetDatasetRequest()
            one.owner_slug, one.dataset_slug = self.handle.split("/")
            try:
                return int(ask.get_dataset(one).current_version_number)
            except Exception as error:
                if status(error) not in (403, 404):
                    raise
                mine = ApiListDatasetsRequest()
                mine.group, mine.page = DatasetSelectionGroup.DATASET_SELECTION_GROUP_MY, 1
                while listed := ask.list_datasets(mine).datasets:
                    if self.handle.lower() in (str(each.ref).lower() for each in listed):
                        raise NotReadyError("Kaggle has not made the data set ready, or turns the key away.") from error
                    mine.page += 1
                return 0
