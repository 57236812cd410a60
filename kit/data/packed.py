"""Data sets that are packed: an archive is unpacked into scratch once, whole or not at all; one on the web is fetched.

What is unpacked is named by the archive's content. *Not covered*: a `.tar` that is not compressed and is changed in the
middle, with its size and its date of change kept.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.request import urlopen

from kit.errors import DataError
from kit.kaggle import session
from kit.store import disk
from kit.store.disk_errors import FULL, refused
from kit.store.lock import Lock

ENDS = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".rar", ".7z")
END = 1 << 20  # bytes read at either end of an archive
CHUNK = 1 << 20  # bytes
ANSWER_S = 30.0
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


def is_archive(path: Path) -> bool:
    """Tell an archive by its name."""
    return path.name.lower().endswith(ENDS) and path.is_file()


def folder() -> Path:
    """Return the folder of what was unpacked."""
    return session.scratch() / "unpacked"


def unpack(path: Path) -> Path:
    """Return the folder that an archive is unpacked into.

    Raises:
        DataError: It is damaged, or a file in it lies outside of it.
        StorageError: There is no room.
    """
    with _explained(path):
        content = _content(path)
    return _make(_place(content), lambda place: _unpack(path, place))


def fetched(address: str) -> Path:
    """Return the folder that the archive at an address is unpacked into; it may be still to be made."""
    return _place(address)


def fetch(address: str) -> Path:
    """Download an archive and return the folder that it is unpacked into.

    Raises:
        DataError: It cannot be downloaded, or is no good archive.
        StorageError: There is no room.
    """

    def download(place: Path) -> None:
        archive = place.with_name(f"{place.name}.archive{disk.TEMPORARY}")
        try:
            _download(address, archive)
            _unpack(archive, place, without_secrets(address))
        finally:
            disk.remove(archive)

    return _make(fetched(address), download)


def without_secrets(address: str) -> str:
    """Return an address without a password or a key that it may hold."""
    return re.sub("//[^/]*@", "//", address.partition("?")[0])


def holds_images(path: Path, is_image: Callable[[str], bool]) -> bool:
    """Tell whether an archive may be a data set; a list of a `.tar` takes as long as unpacking it."""
    if path.suffix.lower() != ".zip":
        return True
    with suppress(*DAMAGED, OSError), zipfile.ZipFile(path) as file:
        return any(is_image(PurePosixPath(name).name) for name in file.namelist())
    return False


def _place(content: str) -> Path:
    return folder() / hashlib.sha256(content.encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    """Return what tells an archive from others; those that are compressed end with a sum of their content."""
    state = path.stat()
    with open(path, "rb") as file:
        ends = hashlib.sha256(file.read(END))
        file.seek(max(state.st_size - END, 0))
        ends.update(file.read(END))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            words = repr([(each.filename, each.CRC, each.file_size) for each in packed.infolist()])
    else:
        words = str(state.st_mtime_ns if path.suffix == ".tar" else "")
    return f"{state.st_size} {ends.hexdigest()} {words}"


def _make(place: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder whole or not at all, by one process at a time."""
    lock = Lock(disk.make_folder(folder()) / "unpack.lock")
    lock.acquire(wait=float("inf"))
    try:
        for leftover in folder().glob(f"*{disk.TEMPORARY}"):  # of a process that was killed
            disk.remove(leftover)
        if not place.is_dir():
            temporary = place.with_name(f"{place.name}{disk.TEMPORARY}")
            try:
                fill(temporary)
                disk.DISK.replace(temporary, place)
            finally:
                disk.remove(temporary)
    finally:
        lock.release()
    return place


def _say(text: str) -> None:
    with suppress(OSError):  # the log's disk may be full
        print(text, file=sys.stderr, flush=True)


def _unpack(path: Path, place: Path, name: str = "") -> None:
    """Unpack an archive into a folder.

    Args:
        path: Of the archive.
        place: The folder, which is made.
        name: What the user calls the archive.
    """
    name = name or str(path)
    _say(f"Unpacking {name} ...")
    with _explained(name):
        disk.make_folder(place)
        if zipfile.is_zipfile(path):
            _unpack_zip(path, place)
        elif tarfile.is_tarfile(path):
            _unpack_tar(path, place)
        else:
            raise ValueError("it is neither a .zip nor a .tar")


def _unpack_zip(path: Path, place: Path) -> None:
    with zipfile.ZipFile(path) as file:
        members = [each for each in file.infolist() if not each.filename.startswith("__MACOSX/")]
        for each in members:
            each.filename = each.filename.replace("\\", "/")  # as some programs of Windows write them
            inside = PurePosixPath(each.filename)
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"'{each.filename}' in it leads out of its folder")
        disk.make_room(place, sum(each.file_size for each in members))
        for each in members:
            file.extract(each, place)  # no more than its size; a link becomes a file with its text


def _unpack_tar(path: Path, place: Path) -> None:
    """Unpack with tarfile's filter, which refuses what leads out; links come last, so that nothing goes through one."""
    with tarfile.open(path, "r:*") as file:
        links, size, room = [], 0, disk.DISK.free(place)
        disk.make_room(place, path.stat().st_size)
        for member in file:
            size += member.size
            if size > room - disk.RESERVE:
                disk.make_room(place, size)
            if member.issym() or member.islnk():
                links.append(member)
            else:
                file.extract(member, place, filter="data")
        while file.fileobj and file.fileobj.read(CHUNK):  # to the sum at its end
            pass
        for link in sorted(links, key=tarfile.TarInfo.issym):
            if link.islnk() and not (place / link.linkname).is_file():
                raise ValueError(f"the link '{link.name}' in it leads to nothing")
            file.extract(link, place, filter="data")
        for link in links:
            if not (place / link.name).resolve().is_relative_to(place.resolve()):
                raise ValueError(f"the link '{link.name}' in it leads out of its folder")


def _download(address: str, path: Path) -> None:
    shown = without_secrets(address)
    if not address.lower().startswith(("http://", "https://")):
        raise DataError(
            f"'{shown}' is no address of the web (https://...).", "Download it, and give its path as data=..."
        )
    try:
        with urlopen(address, timeout=ANSWER_S) as answer:  # noqa: S310  # of the web, see above
            size = int(answer.headers.get("Content-Length") or 0)
            disk.make_room(path.parent, size)
            _say(f"Downloading {shown}" + (f", {size / 1e6:.0f} MB ..." if size else " ..."))
            disk.publish(path, lambda file: shutil.copyfileobj(answer, file, CHUNK), durable=False)
        if size and path.stat().st_size != size:
            raise OSError(f"it ended after {path.stat().st_size} of {size} bytes")
    except (OSError, ValueError, HTTPException) as error:  # an address that is none; no answer as it should be
        text = (
            str(getattr(error, "reason", error)) if isinstance(error, OSError) else type(error).__name__
        )  # no address
        raise DataError(
            f"'{shown}' cannot be downloaded: {text}.",
            "Switch the internet on, or attach the data set and give its path.",
        ) from error


@contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    try:
        yield
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise refused(f"'{name}' cannot be unpacked", error) from error
        text = " ".join(str(error).split()).rstrip(".") or "it is damaged"
        advice = "Unpack it where it was made, or pack it anew."
        raise DataError(f"The archive '{name}' cannot be unpacked: {text}.", advice) from error
