"""Backups in a folder on any file system that fsspec knows."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import uuid
from functools import partial
from pathlib import Path

from kit.backup.manifests import Manifest, read, stored
from kit.backup.secrets import NotReadyError

FLAT = ("s3", "s3a", "gs", "gcs", "abfs", "az", "hf")  # here a folder is part of a name, and is not made
_NUMBER = re.compile(r"manifest-(\d+)\.json")


class Files:
    """A folder, at an address like `s3://bucket/path`, with one folder per run.

    No name is written twice: a file has its checksum in its name and manifests are numbered, so a reader finds the one
    before where the newest is torn, also where a write is not atomic. What lists old names is found out by the number
    that comes next.
    """

    pause = 60.0  # least seconds between two uploads
    shared = True  # several runs have room beside each other; without, every upload holds all of its files

    def __init__(self, address: str) -> None:
        import fsspec

        fsspec.config.set_conf_env(fsspec.config.conf)  # it was read before Kaggle's secrets were
        self.fs, root = fsspec.core.url_to_fs(address, skip_instance_cache=True)
        self.root = str(root).rstrip("/")
        self.flat = address.partition("://")[0] in FLAT
        self.odd: set[str] = set()  # what should be a manifest and is none, as far as it was met

    def check(self) -> None:
        """Prove that it can be written: write a file and remove it."""
        if not self.flat:
            self.fs.makedirs(self.root, exist_ok=True)
        probe = f"{self.root}/.{uuid.uuid4().hex}"
        self.fs.pipe_file(probe, b"")
        with contextlib.suppress(Exception):  # a key that may not delete
            self.fs.rm_file(probe)

    def manifests(self, run: str | None = None) -> list[Manifest]:
        """Return all whole manifests or those of a run, the latest upload of each run first.

        It is an error, and not an empty list, where what is there cannot be told just now.
        """
        self.fs.invalidate_cache()
        runs = [name for name in self._list(self.root) if "." not in name] if run is None else [run]
        return [manifest for each in runs for manifest in reversed(self._read(each).values()) if manifest]

    def push(self, manifest: Manifest, paths: dict[str, Path]) -> None:
        """Upload files, then a manifest with the next number; what is there already stays.

        Args:
            manifest: Its `files` tell size and SHA-256 of each of `paths`, and of what is there already.
            paths: The files by name, alone in their folder; they do not change meanwhile.
        """
        folder = f"{self.root}/{manifest['run_id']}"
        files = {f"{folder}/{stored(name, manifest)}": path for name, path in paths.items()}
        number = max(self._read(manifest["run_id"]), default=0) + 1
        self._add(files, f"{folder}/{_name(number)}", json.dumps(manifest).encode())

    def _add(self, files: dict[str, Path], marker: str, text: bytes) -> None:
        if not self.flat:
            self.fs.makedirs(marker.rpartition("/")[0], exist_ok=True)
        for target, path in files.items():
            self.fs.put_file(str(path), target)
        self.fs.pipe_file(marker, text)

    def checksum(self, manifest: Manifest, name: str) -> str:
        """Read a file as it lies there, and return its SHA-256."""
        self.fs.invalidate_cache()
        with self.fs.open(self._path(manifest, name), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        """Download one file of a manifest that `manifests` has returned."""
        self.fs.invalidate_cache()
        self.fs.get_file(self._path(manifest, name), str(target))

    def prune(self, run: str, kept: list[Manifest]) -> None:
        """Remove what a run does not need but for these of its backups, and any that came after them."""
        numbered = self._read(run)
        last = max((number for number, each in numbered.items() if each in kept), default=0)
        stay = {number: each for number, each in numbered.items() if each in kept or number > last}
        names = {stored(name, each) for each in stay.values() if each for name in each["files"]}
        names |= {_name(number) for number in stay}
        self._remove([f"{self.root}/{run}/{name}" for name in self._list(f"{self.root}/{run}") if name not in names])

    def _remove(self, paths: list[str]) -> None:
        for path in sorted(paths, key=lambda path: not path.endswith(".json")):  # first what names the others
            with contextlib.suppress(Exception):  # a key that may not delete; the next upload tries again
                self.fs.rm_file(path)

    def _read(self, run: str) -> dict[int, Manifest | None]:
        """Return the manifests of a run by their numbers, which rise; None for what is none."""
        folder, found = f"{self.root}/{run}", dict[int, Manifest | None]()
        listed = sorted(int(match[1]) for match in map(_NUMBER.fullmatch, self._list(folder)) if match)
        for number in itertools.chain(listed, itertools.count(max(listed, default=0) + 1)):
            path = f"{folder}/{_name(number)}"
            try:
                if number not in listed:
                    self.fs.invalidate_cache()
                manifest = read(partial(self.fs.cat_file, path), listed=number in listed)
            except IsADirectoryError:
                manifest = None
            except (FileNotFoundError, NotADirectoryError) as error:
                if number in listed:
                    raise NotReadyError(f"'{path}' is listed and not there.") from error  # an old list
                break
            found[number] = manifest if manifest and manifest["run_id"] == run else None
            if found[number] is None:
                self.odd.add(path)
        return found

    def _path(self, manifest: Manifest, name: str) -> str:
        return f"{self.root}/{manifest['run_id']}/{stored(name, manifest)}"

    def _list(self, folder: str) -> list[str]:
        try:
            return [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(folder, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []


def _name(number: int) -> str:
    return f"manifest-{number:06d}.json"
