"""Stand-ins on loopback for the servers that real clients talk to: just enough of Kaggle's and Hugging Face's APIs."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Answer = tuple[int, dict[str, str], bytes]
PAGE = b"<!DOCTYPE html><title>Please wait</title>"


class StandIn:
    """A server on loopback; a subclass says in `answer` what it answers.

    Args:
        token: The only one that is let in.
        port: 0 takes a free one.

    Attributes:
        asked: Every request so far, as `METHOD path`.
        fault: Tells how the next request fails: `refused`, `cut` in mid-body, answered with a `page`, with what was
            true before the last change (`old`), or with a status; empty for not at all.
    """

    state: tuple[str, ...] = ()  # the attributes that requests change
    clock: tuple[str, ...] = ()  # the ones that they only move on

    def __init__(self, token: str, port: int = 0) -> None:
        self.token, self.asked = token, list[str]()
        self.lock = threading.Lock()
        self.fault: Callable[[], str] = str
        self.before: dict[str, Any] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with outer.lock:
                    outer.asked.append(f"{self.command} {self.path}")
                    known = self.headers.get("Authorization") in (f"Bearer {outer.token}", None)
                    fault = outer.fault()
                    status, headers, content = outer.fail(fault, self.path, body) if known else (401, {}, b"")
                if fault == "refused":
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
                self.close_connection = fault == "cut"

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815  # the names that the base class calls

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://localhost:{self.server.server_port}"

    def answer(self, path: str, body: bytes) -> Answer:
        raise NotImplementedError

    def fail(self, fault: str, path: str, body: bytes) -> Answer:
        """Answer a request, in the way that it fails."""
        if fault in ("refused", "page") or fault.isdigit():
            return int(fault) if fault.isdigit() else 200, {"Content-Type": "text/html"}, PAGE
        now = self.saved()
        if fault == "old":
            self.restore(self.before)
            answered, wrote = self.answer(path, body), self._changed({**now, **self.before})
            self.restore(now)
            if not wrote:
                return answered
        answered = self.answer(path, body)
        if self._changed(now):
            self.before = {name: now[name] for name in self.state}
        return answered

    def _changed(self, before: dict[str, Any]) -> bool:
        return any(getattr(self, name) != before[name] for name in self.state)

    def saved(self) -> dict[str, Any]:
        """Return what requests change."""
        return {name: copy.deepcopy(getattr(self, name)) for name in (*self.state, *self.clock, "before")}

    def restore(self, values: dict[str, Any]) -> None:
        """Be as it was once."""
        vars(self).update(copy.deepcopy(values))

    def __enter__(self) -> Any:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def said(values: Any, status: int = 200, **headers: str) -> Answer:
    """Answer with JSON."""
    return status, {"Content-Type": "application/json", **headers}, json.dumps(values).encode()


class Kaggle(StandIn):
    """Kaggle's data sets, on the port that its client knows as TEST.

    Attributes:
        versions: Of the one data set, oldest first: name -> bytes.
        working: How many of the newest versions it has not made ready.
        forbids: It turns the key away, for now.
        early: It counts versions that are not ready, and turns away who asks for their files.
        slow: How often a new version is asked for before it is ready.
        private: Whether it was asked for as a private one.
    """

    state, clock = ("versions", "blobs"), ("working", "looks")

    def __init__(self, token: str) -> None:
        super().__init__(token, 7777)
        self.versions: list[dict[str, bytes]] = []
        self.working, self.forbids, self.early, self.slow = 0, False, False, 0
        self.blobs: dict[str, tuple[str, bytes]] = {}
        self.private, self.looks = False, 0

    def answer(self, path: str, body: bytes) -> Answer:
        if path.startswith("/blob/"):
            name, _ = self.blobs[path]
            self.blobs[path] = name, body
            return said({})
        values, call = json.loads(body), path.rpartition("/")[2]
        if call == "StartBlobUpload":
            place = f"/blob/{len(self.blobs)}"
            self.blobs[place] = values["name"], b""
            return said({"token": place, "createUrl": f"{self.url}{place}"})
        if call in ("CreateDataset", "CreateDatasetVersion"):
            if call == "CreateDataset" and self.versions:
                return said({"error": "The data set exists.", "errorCode": 409})
            self.private |= values.get("isPrivate", False)
            files = values.get("body", values)["files"]
            self.versions.append(dict(self.blobs[file["token"]] for file in files))
            self.working, self.looks = min(self.slow, 1), self.slow
            return said({})
        if call == "ListDatasets":
            return said({"datasets": [{"ref": "me/run"}] if self.versions and values.get("page") == 1 else []})
        if call == "GetDataset" and self.slow:
            self.looks -= 1
            self.working = int(self.looks >= 0)
        ready = len(self.versions) - self.working
        if ready < 1 or (call == "GetDataset" and self.forbids):
            return said({"code": 403, "message": "Permission 'datasets.get' was denied"}, 403)
        if call == "GetDataset":
            return said({"currentVersionNumber": len(self.versions) if self.early else ready})
        version = values["datasetVersionNumber"]
        if ready < version <= len(self.versions) and self.early:
            return said({"code": 403, "message": "Permission was denied"}, 403)
        content = self.versions[version - 1].get(values.get("fileName")) if version <= ready else None
        return said({"code": 404, "message": "Not found"}, 404) if content is None else (200, {}, content)


class Hub(StandIn):
    """Hugging Face repositories without the large file storage: every file is committed as it is.

    Attributes:
        files: Of the one repository: path -> bytes; None before it was made.
        private: Whether it was asked for as a private one.
        commits: Their number.
        large: The ones that are in its large file storage: path -> object.
        stored: What its large file storage is said to hold.
        deleted: The storage's objects that were deleted for good.
    """

    state = ("files", "large")

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self.files: dict[str, bytes] | None = None
        self.commits, self.private = 0, False
        self.large: dict[str, str] = {}
        self.stored: list[dict[str, Any]] = []
        self.deleted: list[str] = []

    def answer(self, path: str, body: bytes) -> Answer:
        path = unquote(path.partition("?")[0])
        if path == "/api/repos/create":
            created, self.files = self.files is None, self.files or {}
            asked = json.loads(body)
            self.private = asked.get("private") is True or asked.get("visibility") == "private"
            return said({"url": f"{self.url}/me/run"}, 200 if created else 409)
        if self.files is None:
            return said({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        if match := re.fullmatch(r"/me/run/resolve/main/(.+)", path):
            if match[1] not in self.files:
                return said({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
            content = self.files[match[1]]
            headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            return 200, headers, content
        call, _, rest = path.removeprefix("/api/models/me/run").lstrip("/").partition("/")
        if call in ("", "revision"):
            return said({"id": "me/run", "sha": "0" * 40, "private": True, "tags": [], "downloads": 0, "likes": 0})
        if call == "preupload":
            asked = json.loads(body)["files"]
            return said({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in asked]})
        if call == "commit":
            return self.commit([json.loads(line) for line in body.splitlines()])
        if call == "tree":
            return self.tree(rest.partition("/")[2])
        if call == "lfs-files":
            self.deleted += json.loads(body)["deletions"]["sha"] if rest else []
            return said(self.stored)
        return said({"error": f"no stand-in for {path}"}, 500)

    def commit(self, lines: list[dict[str, Any]]) -> Answer:
        assert self.files is not None
        for line in lines:
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.files[line["value"]["path"]]
        self.commits += 1
        return said({"commitUrl": f"{self.url}/me/run/commit/{self.commits}", "commitOid": "0" * 40})

    def tree(self, folder: str) -> Answer:
        assert self.files is not None
        start = f"{folder}/" if folder else ""
        inside = {path.removeprefix(start) for path in self.files if path.startswith(start)}
        if not inside and folder:
            return said({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
        files = [name for name in inside if "/" not in name]
        folders = {name.partition("/")[0] for name in inside if "/" in name}
        listed: list[dict[str, Any]] = [
            {"type": "directory", "path": start + name, "size": 0} for name in sorted(folders)
        ]
        for path in sorted(start + name for name in files):
            large = {"lfs": {"oid": self.large[path], "size": 1, "pointerSize": 1}} if path in self.large else {}
            listed.append({"type": "file", "path": path, "size": len(self.files[path]), **large})
        return said([{**entry, "oid": "0" * 40, "lastCommit": None} for entry in listed])
