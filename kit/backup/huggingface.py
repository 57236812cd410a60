"""Backups in a Hugging Face repository."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kit.backup.files import Files
from kit.backup.manifests import Manifest
from kit.errors import ConfigError


class Repository(Files):
    """A Hugging Face repository, made private where there is none yet; every upload is a commit.

    What no file of the repository holds any more is deleted for good, because it counts towards the account's storage.
    """

    pause = 900.0

    def __init__(self, address: str) -> None:
        super().__init__(address)
        import huggingface_hub

        self.library, self.hub = huggingface_hub, huggingface_hub.HfApi()
        kind, _, rest = self.root.partition("/")
        kind, rest = (kind.removesuffix("s"), rest) if kind in ("datasets", "spaces") else ("model", self.root)
        self.repository = {"repo_id": "/".join(rest.split("/")[:2]), "repo_type": kind}
        self.inside = len(self.root) - len(rest) + len(self.repository["repo_id"]) + 1  # where a path in it begins

    def check(self) -> None:
        """Make the repository; that needs a token that may write.

        Raises:
            ConfigError: There is no token.
        """
        if not self.library.get_token():
            raise ConfigError("There is no token for Hugging Face.", "Set HF_TOKEN in the secrets or the environment.")
        self.hub.create_repo(**self.repository, private=True, exist_ok=True)

    def checksum(self, manifest: Manifest, name: str) -> str:
        """Return the SHA-256 of a file, which the large file storage makes of the bytes that it holds."""
        self.fs.invalidate_cache()
        large = self.fs.info(self._path(manifest, name)).get("lfs")
        return str(large["sha256"]) if large else super().checksum(manifest, name)

    def _add(self, files: dict[str, Path], marker: str, text: bytes) -> None:
        contents = {**{target: str(path) for target, path in files.items()}, marker: text}
        added = [self.library.CommitOperationAdd(path[self.inside :], content) for path, content in contents.items()]
        self.hub.create_commit(**self.repository, operations=added, commit_message="Back up a run")

    def _remove(self, paths: list[str]) -> None:
        if not paths:
            return
        removed = [self.library.CommitOperationDelete(path[self.inside :]) for path in paths]
        self.hub.create_commit(**self.repository, operations=removed, commit_message="Remove older backups of a run")
        with contextlib.suppress(Exception):  # a key that may not; the next upload tries again
            files = self.hub.list_repo_tree(**self.repository, recursive=True)
            kept = {file.lfs.sha256 for file in files if getattr(file, "lfs", None)}
            folder = paths[0][self.inside :].rpartition("/")[0] + "/"
            stored = self.hub.list_lfs_files(**self.repository)
            gone = [f for f in stored if f.filename.startswith(folder) and not {f.oid, f.file_oid} & kept]
            if gone:
                self.hub.permanently_delete_lfs_files(lfs_files=gone, **self.repository)
