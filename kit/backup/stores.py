"""Where backups lie: any address that fsspec knows, a Hugging Face repository, a Kaggle data set.

A store keeps one backup per run: two files and a manifest that names them with their checksums. Payload first, manifest
last: whoever reads trusts only what a whole manifest names, so an upload that was cut off leaves the backup before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from kit import session
from kit.backup.access import SECRETS, take_secrets
from kit.errors import ConfigError

Manifest = dict[str, Any]

CLIENTS = {"kaggle": "kagglehub", "hf": "huggingface_hub", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
FLAT = ("s3", "s3a", "gs", "gcs", "abfs", "az", "hf")  # here a folder is part of a name, and is not made


class Store(Protocol):
    """What a backup needs of the place where it lies.

    Attributes:
        pause: Least seconds between two uploads.
        shared: Whether several runs have room beside each other.
    """

    pause: float
    shared: bool

    def check(self) -> None:
        """Prove that it can be written; raises the client's own errors."""

    def manifests(self) -> list[Manifest]:
        """Return the newest whole manifest of each run."""

    def push(self, manifest: Manifest, paths: dict[str, Path]) -> None:
        """Upload the files of a manifest and then the manifest, and remove what they replace.

        Args:
            manifest: Its `files` tell size and SHA-256 of each of `paths`.
            paths: The files by name; they do not change meanwhile.
        """

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        """Download one file of a manifest."""


class Files:
    """A folder on any file system that fsspec knows, with one folder per run.

    No name is ever written twice: a file has its checksum in its name and manifests are numbered, so a reader finds the
    one before where the newest is torn, also where a write is not atomic.

    Args:
        address: As `s3://bucket/path`.
    """

    pause, shared = 60.0, True

    def __init__(self, address: str) -> None:
        import fsspec

        fsspec.config.set_conf_env(fsspec.config.conf)  # it was read before Kaggle's secrets were
        self.fs, root = fsspec.core.url_to_fs(address, skip_instance_cache=True)
        self.root = str(root).rstrip("/")
        self.flat = address.partition("://")[0] in FLAT

    def check(self) -> None:
        """Write a file and remove it."""
        if not self.flat:
            self.fs.makedirs(self.root, exist_ok=True)
        probe = f"{self.root}/.{uuid.uuid4().hex}"
        self.fs.pipe_file(probe, b"")
        with contextlib.suppress(Exception):  # a key that may not delete
            self.fs.rm_file(probe)

    def manifests(self) -> list[Manifest]:
        """Return the newest whole manifest of each run."""
        self.fs.invalidate_cache()
        runs = [path for path in self._list(self.root) if "." not in path.rpartition("/")[2]]
        found = [next(self._read(folder), None) for folder in runs]
        return [manifest for manifest in found if manifest is not None]

    def push(self, manifest: Manifest, paths: dict[str, Path]) -> None:
        """Upload what is not there yet, then a manifest with the next number; then remove all else of the run."""
        self.fs.invalidate_cache()
        folder = f"{self.root}/{manifest['run_id']}"
        there = self._list(folder)
        before: Manifest = next(self._read(folder), {"files": {}})
        stored = {_stored(name, manifest): name for name in paths}
        changed = [name for name in paths if before["files"].get(name) != manifest["files"][name]]
        new = {f"{folder}/{target}": paths[name] for target, name in stored.items() if name in changed}
        number = max((int(found[1]) for found in map(_MANIFEST.search, there) if found), default=0) + 1
        old = [path for path in there if path.rpartition("/")[2] not in stored]
        self._change(new, f"{folder}/manifest-{number:06d}.json", json.dumps(manifest).encode(), old)

    def _change(self, new: dict[str, Path], marker: str, text: bytes, old: list[str]) -> None:
        if not self.flat:
            self.fs.makedirs(marker.rpartition("/")[0], exist_ok=True)
        for target, path in new.items():
            self.fs.put_file(str(path), target)
        self.fs.pipe_file(marker, text)
        for name in old:
            with contextlib.suppress(Exception):  # a key that may not delete; the next upload tries again
                self.fs.rm_file(name)

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        """Download one file of a manifest."""
        self.fs.get_file(f"{self.root}/{manifest['run_id']}/{_stored(name, manifest)}", str(target))

    def _read(self, folder: str) -> Iterator[Manifest]:
        """Yield the whole manifests of a run, the newest first."""
        for path in sorted(filter(_MANIFEST.search, self._list(folder)), reverse=True):
            with contextlib.suppress(FileNotFoundError):  # another session has removed it just now
                if manifest := parse(self.fs.cat_file(path)):
                    yield manifest

    def _list(self, folder: str) -> list[str]:
        try:
            return [str(path).rstrip("/") for path in self.fs.ls(folder, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []


class Repository(Files):
    """A Hugging Face repository, made private where there is none yet; every upload is a commit.

    What no file of the repository holds any more is deleted for good, because it counts towards the account's storage.
    """

    pause = 900.0

    def __init__(self, address: str) -> None:
        super().__init__(address)
        kind, _, rest = self.root.partition("/")
        kind, rest = (kind.removesuffix("s"), rest) if kind in ("datasets", "spaces") else ("model", self.root)
        self.repository = {"repo_id": "/".join(rest.split("/")[:2]), "repo_type": kind}
        self.inside = len(self.root) - len(rest) + len(self.repository["repo_id"]) + 1  # where a path in it begins

    def check(self) -> None:
        """Make the repository; that needs a token that may write.

        Raises:
            ConfigError: There is no token.
        """
        import huggingface_hub

        if not huggingface_hub.get_token():
            raise ConfigError("There is no token for Hugging Face: set HF_TOKEN in the secrets or the environment.")
        huggingface_hub.HfApi().create_repo(**self.repository, private=True, exist_ok=True)

    def _change(self, new: dict[str, Path], marker: str, text: bytes, old: list[str]) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        hub, inside = HfApi(), self.inside
        changes = [CommitOperationAdd(target[inside:], str(path)) for target, path in new.items()]
        changes.append(CommitOperationAdd(marker[inside:], text))
        removals = [CommitOperationDelete(path[inside:]) for path in old]
        hub.create_commit(**self.repository, operations=[*changes, *removals], commit_message="Back up a run")
        with contextlib.suppress(Exception):  # a key that may not; the next upload tries again
            files = hub.list_repo_tree(**self.repository, recursive=True)
            kept = {file.lfs.sha256 for file in files if getattr(file, "lfs", None)}
            folder = marker[inside:].rpartition("/")[0] + "/"
            stored = hub.list_lfs_files(**self.repository)
            gone = [f for f in stored if f.filename.startswith(folder) and not {f.oid, f.file_oid} & kept]
            if gone:
                hub.permanently_delete_lfs_files(lfs_files=gone, **self.repository)


class DataSet:
    """A Kaggle data set: one run, under the plain names, so that it can also be attached to a notebook.

    Every upload is a version that holds only what is uploaded with it; earlier ones stay until they are deleted on its
    page. Kaggle takes minutes to make a version ready.

    Args:
        address: As `kaggle://owner/slug`.
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

    def check(self) -> None:
        """Look for a token; whether Kaggle takes it shows when the manifest is asked for.

        Raises:
            ConfigError: There is none.
        """
        from kagglehub.config import get_kaggle_credentials

        if get_kaggle_credentials() is None:
            raise ConfigError(
                "There is no token for Kaggle: set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, in the "
                "notebook's secrets or the environment."
            )

    def manifests(self) -> list[Manifest]:
        """Return the manifest of the newest version; none where there is no data set yet."""
        try:
            path = self.hub.dataset_download(self.handle, "manifest.json", force_download=True)
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", None) in (403, 404):
                return []  # Kaggle does not tell a missing data set from a forbidden one
            raise
        manifest = parse(Path(path).read_bytes())
        return [manifest] if manifest else []

    def push(self, manifest: Manifest, paths: dict[str, Path]) -> None:
        """Upload the files and the manifest as a new version."""
        folder = next(iter(paths.values())).parent
        (folder / "manifest.json").write_text(json.dumps(manifest))
        self.hub.dataset_upload(self.handle, str(folder), f"epoch {manifest['epoch']}, step {manifest['step']}")

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        """Download one file of the newest version."""
        shutil.move(self.hub.dataset_download(self.handle, name, force_download=True), target)


_MANIFEST = re.compile(r"/manifest-(\d+)\.json$")
_KEYS: dict[str, Any] = {
    "run_id": str,
    "identity": dict,
    "step": int,
    "epoch": int,
    "epochs": int,
    "best_map": (float, int, type(None)),
    "time": (float, int),
    "replaces": list,
    "files": dict,
}


def parse(text: bytes) -> Manifest | None:
    """Read a manifest; None where it is torn or none at all."""
    try:
        manifest = json.loads(text)
        good = all(isinstance(manifest[key], kind) for key, kind in _KEYS.items())
        sizes = [int(entry["size"]) for entry in manifest["files"].values() if entry["sha256"]]
        good = good and "latest.pt" in manifest["files"] and len(sizes) == len(manifest["files"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if good else None


def _stored(name: str, manifest: Manifest) -> str:
    """Return the name under which a file is stored: `latest.pt` as `latest-1a2b3c4d5e6f.pt`."""
    path = Path(name)
    return f"{path.stem}-{manifest['files'][name]['sha256'][:12]}{path.suffix}"


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
        package = CLIENTS.get(scheme, "fsspec" if "fsspec" in str(error) else "")
        advice = f"pip install {package}" if package else "see https://filesystem-spec.readthedocs.io for the schemes"
        raise ConfigError(f"kit.backup={address} cannot be used ({error}): {advice}.") from error
