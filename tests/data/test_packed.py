"""Data sets that are packed: unpacked into scratch once, whole or not at all, and never beyond their folder."""

from __future__ import annotations

import errno
import functools
import http.server
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.data import find, packed
from kit.errors import DataError, StorageError
from kit.kaggle import inputs
from kit.process import launch
from kit.store import disk
from kit.yolo import evaluation, setup
from kit.yolo.settings import load
from tests.data.test_find import classes, make, refused
from tests.help import training

FORMS = {"zip": "zip", "tgz": "gztar", "tar.gz": "gztar", "tar": "tar", "tar.xz": "xztar", "tar.bz2": "bztar"}


@pytest.fixture(autouse=True)
def looks_anew() -> Iterator[None]:
    """A test attaches what it likes."""
    inputs.forget()
    yield
    inputs.forget()


def pack(place: Path, form: str = "zip", name: str = "input/set", **values: Any) -> Path:
    """Pack a data set of two classes."""
    folder = place / "made" / Path(name).name
    make(folder, train="images/train", val="images/val", **values)
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    made = shutil.make_archive(str(place / "made/archive"), FORMS[form], folder.parent, folder.name)
    shutil.rmtree(folder)
    return Path(shutil.move(made, place / f"{name}.{form}"))


def unpacked(place: Path) -> list[Path]:
    """Return what lies in scratch of archives, whole or not."""
    return [path for path in (place / "scratch").glob("kit-*/unpacked/*") if path.name != "unpack.lock"]


@pytest.mark.parametrize("form", FORMS)
def test_archive_is_a_data_set(place: Path, form: str) -> None:
    """Given, alone in an input, or in a folder that is given."""
    path = pack(place, form)
    for given in (str(path), str(path.parent), "auto"):
        found = find.resolve(given)
        assert (found.names, found.source) == (("cat", "dog"), path)
        assert [file.name for file in Path(found.values["train"]).iterdir()] == ["0.jpg"]
    assert Path(found.values["train"]).is_relative_to(place / "scratch")
    assert len(unpacked(place)) == 1


def test_archive_of_a_classification_set_is_a_data_set(place: Path) -> None:
    """Its folders are the classes."""
    classes(place / "made/pets", "train", "val")
    path = Path(shutil.make_archive(str(place / "input/pets"), "zip", place / "made"))
    found = find.resolve("auto", classify=True)
    assert (found.names, found.source) == (("cat", "dog"), path)
    assert find.resolve(str(path), classify=True) == found


def test_archive_is_unpacked_once_and_again_when_it_has_changed(place: Path) -> None:
    """Named by its content, wherever it lies; a stored image of the same length is another content."""
    path = place / "input/set.zip"
    for content in (b"a picture", b"b picture"):
        make(place / f"made/{content[:1]!r}", train="images/train", val="images/val")
        (place / f"made/{content[:1]!r}/images/train/0.jpg").write_bytes(content + bytes(2 * packed.END))
        with zipfile.ZipFile(path, "w") as file:
            for each in sorted((place / f"made/{content[:1]!r}").rglob("*")):
                info = zipfile.ZipInfo(str(each.relative_to(place / f"made/{content[:1]!r}")))
                file.writestr(info, each.read_bytes()) if each.is_file() else None
        first = Path(find.resolve(str(path)).values["train"])
        (first / "mark").write_text("")
        copied = shutil.copy(path, place / "elsewhere.zip")
        assert (Path(find.resolve(str(copied)).values["train"]) / "mark").exists()
        assert (first / "0.jpg").read_bytes()[:1] == content[:1]
    assert len(unpacked(place)) == 2


def test_changed_archive_with_the_same_end_is_another(place: Path) -> None:
    """The sums of all its files are compared, and not only what lies at its ends."""
    images = {f"images/{split}/{number:05}.jpg": b"a" for split in ("train", "val") for number in range(20000)}
    seen = set()
    for changed in (b"a", b"b"):
        with zipfile.ZipFile(place / "set.zip", "w") as file:
            file.writestr(zipfile.ZipInfo("0.jpg"), bytes(packed.END))
            for name, content in {**images, "images/train/00000.jpg": changed}.items():
                file.writestr(zipfile.ZipInfo(name), content)
        seen.add(packed._content(place / "set.zip"))
    assert len(seen) == 2


def spoil(path: Path, form: str) -> None:
    """Change the bytes of an image, or cut off the sum at the end."""
    content = bytearray(path.read_bytes())
    if form == "zip":
        at = content.index(b"0.jpg") + 5
        content[at : at + 6] = bytes(6)
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-4])


@pytest.mark.parametrize("form", ["zip", "tgz"])
def test_damaged_archive_is_one_sentence_and_leaves_nothing(place: Path, form: str) -> None:
    """With the user's own file."""
    path = pack(place, form)
    spoil(path, form)
    message = refused(path)
    assert message.startswith(f"The archive '{path}' cannot be unpacked: ")
    assert str(place / "scratch") not in message
    assert unpacked(place) == []


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz", "set.7z", "set.rar"])
def test_file_that_is_no_archive_is_one_sentence(place: Path, name: str) -> None:
    """What its name says is not enough."""
    (place / name).write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    assert "neither a .zip nor a .tar" in refused(place / name)


def test_archive_that_a_kill_left_half_unpacked_is_unpacked_anew(place: Path) -> None:
    """What was left is removed: it may be large."""
    path = pack(place)
    folder = packed.unpack(path)
    half = folder.with_name(f"{folder.name}.tmp")
    folder.rename(half)
    (half / "set/data.yaml").unlink()
    half.with_name("other.tmp").write_bytes(b"an archive that was being fetched")
    assert find.resolve(str(path)).names == ("cat", "dog")
    assert unpacked(place) == [folder]


@pytest.mark.parametrize(("form", "content"), [("zip", bytes), ("tgz", bytes), ("tgz", os.urandom), ("tar", bytes)])
def test_archive_that_there_is_no_room_for_is_refused_before(
    place: Path, form: str, content: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of what it holds is what counts, or its own as long as no other is known; nothing is left of it."""
    make(place / "made/set", train="images/train", val="images/val")
    (place / "made/set/images/val/0.jpg").write_bytes(content(1 << 20))
    made = shutil.make_archive(str(place / "archive"), FORMS[form], place / "made")
    path = Path(made).rename(place / f"set.{form}")
    monkeypatch.setattr(disk.DISK, "free", lambda folder: disk.RESERVE + (1 << 20) - 1)
    written: list[Any] = []
    for kind in (zipfile.ZipFile, tarfile.TarFile):
        monkeypatch.setattr(kind, "extract", lambda *given, **_: written.append(given))
    with pytest.raises(StorageError, match="MB are needed"):
        find.resolve(str(path))
    assert unpacked(place) == []
    assert written == [] or (form, content) == ("tgz", bytes)


def test_disk_that_fills_up_while_unpacking_is_said_as_such(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may take the room; the archive is good."""
    path = pack(place)

    def extract(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    with pytest.raises(StorageError, match=f"^'{path}' cannot be unpacked: the disk is full.") as caught:
        find.resolve(str(path))
    assert caught.value.full
    assert unpacked(place) == []


class Tar:
    """A .tar of two images and whatever else a test puts in."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, tarfile.open(path, "w:gz")  # noqa: SIM115  # `resolve` closes it
        for split in ("train", "val"):
            self.add(f"images/{split}/0.jpg", b"a picture")
        self.add("data.yaml", b"train: images/train\nval: images/val\nnames: [cat, dog]\n")

    def add(self, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, len(content)
        self.file.addfile(member, io.BytesIO(content))
        return self

    def resolve(self) -> find.DataSet:
        self.file.close()
        return find.resolve(str(self.path))


BAD = {
    "path with dots": [("../../escaped", b"x")],
    "link out": [("link", b"", tarfile.SYMTYPE, "../../../..")],
    "absolute link": [("link", b"", tarfile.SYMTYPE, "/etc")],
    "link by way of another": [
        ("deep/a", b"", tarfile.SYMTYPE, "."),
        ("deep/b", b"", tarfile.SYMTYPE, "a/../.."),
        ("deep/c", b"", tarfile.SYMTYPE, "b/../../.."),
    ],
    "hard link out": [("link", b"", tarfile.LNKTYPE, "../../../../etc/passwd")],
    "hard link to nothing": [("link", b"", tarfile.LNKTYPE, "none")],
    "link that a later one turns": [
        ("deep/b", b"", tarfile.SYMTYPE, "a/../.."),
        ("deep/a", b"", tarfile.SYMTYPE, "."),
    ],
    "hard link to a link": [("a", b"", tarfile.SYMTYPE, "data.yaml"), ("b", b"", tarfile.LNKTYPE, "a")],
    "file through a link": [("link", b"", tarfile.SYMTYPE, "/tmp"), ("link/escaped", b"x")],
    "device": [("null", b"", tarfile.CHRTYPE)],
    "pipe": [("pipe", b"", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("members", BAD.values(), ids=list(BAD))
def test_member_that_leads_out_of_the_folder_is_refused(place: Path, members: list[Any]) -> None:
    """And so is what is no file, folder or link; nothing is written outside, and nothing stays."""
    tar = Tar(place / "set.tgz")
    for member in members:
        tar.add(*member)
    with pytest.raises(DataError, match=f"^The archive '{tar.path}' cannot be unpacked: ") as caught:
        tar.resolve()
    assert "\n" not in str(caught.value)
    assert unpacked(place) == []
    assert [*place.rglob("escaped")] == []
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("name", ["../../escaped.txt", "/escaped.txt"])
def test_zip_with_a_member_outside_is_refused(place: Path, name: str) -> None:
    """Python would put it inside, under another name."""
    with zipfile.ZipFile(pack(place), "a") as file:
        file.writestr(name, "x")
    assert f"'{name}' in it leads out of its folder" in refused(place / "input/set.zip")
    assert unpacked(place) == []


def test_zip_of_windows_has_folders(place: Path) -> None:
    """Some programs write backslashes; and what a Mac adds is left out."""
    with zipfile.ZipFile(place / "set.zip", "w") as file:
        for name in (r"set\images\train\0.jpg", r"set\images\val\0.jpg", "__MACOSX/data.yaml"):
            file.writestr(name, b"a picture")
        file.writestr(r"set\data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    assert find.resolve(str(place / "set.zip")).names == ("cat", "dog")
    assert [path.name for path in unpacked(place)[0].iterdir()] == ["set"]
    with zipfile.ZipFile(place / "set.zip", "a") as file:
        file.writestr(r"..\..\escaped", b"x")
    assert "leads out of its folder" in refused(place / "set.zip")


def test_links_within_an_archive_are_kept(place: Path) -> None:
    """Symbolic ones to folders and files, and hard ones."""
    tar = Tar(place / "set.tgz")
    tar.add("images/train/more", kind=tarfile.SYMTYPE, link="../val")
    tar.add("images/train/1.jpg", kind=tarfile.LNKTYPE, link="images/val/0.jpg")
    images = Path(tar.resolve().values["train"])
    assert (images / "more/0.jpg").read_bytes() == (images / "1.jpg").read_bytes() == b"a picture"
    assert (images / "more").is_symlink()


def test_nothing_is_written_through_a_link_in_an_archive(place: Path) -> None:
    """Not even where the link stays within."""
    tar = Tar(place / "set.tgz")
    tar.add("link", kind=tarfile.SYMTYPE, link="images").add("link/new.txt", b"x")
    assert not (Path(tar.resolve().values["train"]).parent / "new.txt").exists()


def test_what_an_archive_lacks_is_said_of_the_archive(place: Path) -> None:
    """And not of the folder in scratch."""
    path = pack(place, names=None)
    assert refused(path).startswith(f"'{path}/set/data.yaml' must list the classes")


def test_archive_without_a_data_yaml_is_told_its_lines(place: Path) -> None:
    """Without a path: they belong beside the images, and scratch is gone with the session."""
    path = pack(place, name="input/set")
    folder = packed.unpack(path)
    (folder / "set/data.yaml").unlink()
    for split in ("train", "val"):
        (folder / f"set/labels/{split}").mkdir(parents=True)
    with pytest.raises(DataError, match=f"^'{path}/set' holds images and labels") as caught:
        find.resolve(str(path))
    assert str(place / "scratch") not in str(caught.value)
    lines = "\n".join(caught.value.hint.splitlines()[1:])
    assert yaml.safe_load(lines) == {"train": "images/train", "val": "images/val", "names": ["class_0"]}


def test_archive_in_an_archive_is_not_unpacked(place: Path) -> None:
    """One may hold itself."""
    inner = pack(place)
    shutil.make_archive(str(place / "outer"), "zip", inner.parent)
    assert "neither a data.yaml nor" in refused(place / "outer.zip")


def test_several_attached_archives_are_listed(place: Path) -> None:
    """Those without images are none."""
    paths = [pack(place, name=f"input/{name}/{name}", names={0: name}) for name in ("a", "b")]
    with zipfile.ZipFile(place / "input/wheels.zip", "w") as file:
        file.writestr("a.whl", "x")
    with pytest.raises(DataError, match=r"^2 data sets lie under") as caught:
        find.resolve("auto")
    assert str(caught.value).splitlines()[1:] == [f"  data={path}" for path in paths]
    paths[0].unlink()
    inputs.forget()
    assert find.resolve("auto").names == ("b",)


def test_data_set_that_is_not_packed_is_taken_before_one_that_is(place: Path) -> None:
    """An archive beside it may be anything."""
    pack(place)
    make(place / "input/plain", train="images/train", val="images/val", names={0: "horse"})
    assert find.resolve("auto").names == ("horse",)
    assert find.resolve(str(place / "input")).names == ("horse",)
    assert unpacked(place) == []


def test_nothing_is_unpacked_or_fetched_before_training_has_started(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notebook would stand still; what is missing is said all the same."""
    pack(place)
    for name in ("auto", str(place / "input/set.zip"), "http://127.0.0.1:1/set.zip"):
        find.check(name)
    assert unpacked(place) == []
    with pytest.raises(DataError, match="cannot be read: No such file"):
        find.check(str(place / "input/none.zip"))

    def told(*_: object) -> None:
        raise DataError("told")

    monkeypatch.setattr(find, "check", told)
    with pytest.raises(DataError, match="told"):
        launch.run(None, ["data=auto"])


def test_training_from_an_archive(place: Path) -> None:
    """As from its folder; the best model remembers the archive."""
    values = training.settings(place / "made", epochs=1)
    folder = Path(values["data"]).parent
    archive = shutil.make_archive(str(place / "input/shapes"), "zip", folder)
    trained = training.train({**values, "data": archive})
    assert trained["epoch"] == 1
    found = find.resolve(archive)
    assert setup.remembered(found, place / "copy.yaml") == archive
    assert setup.remembered(find.resolve("shapes"), place / "copy.yaml") == str(place / "copy.yaml")


# --- on the web


@pytest.fixture
def web(place: Path) -> Iterator[str]:
    """The address of a server of the folder `web`."""
    (place / "web").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send_header(self, name: str, value: str) -> None:
            short = name == "Content-Length" and "short" in self.path
            super().send_header(name, str(int(value) + 1) if short else value)

    handler = functools.partial(Quiet, directory=str(place / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_address_of_an_archive_is_a_data_set(place: Path, web: str) -> None:
    """It is downloaded once."""
    path = pack(place, "tgz", "web/set")
    found = find.resolve(f"{web}/set.tgz?key=secret")
    assert found.names == ("cat", "dog")
    path.unlink()
    assert find.resolve(f"{web}/set.tgz?key=secret") == found
    assert len(unpacked(place)) == 1
    assert setup.remembered(found, place / "copy.yaml") == f"{web}/set.tgz?key=secret"


@pytest.mark.parametrize("name", ["none.zip", "short.zip", "with a space.zip"])
def test_address_that_gives_no_whole_archive_is_one_sentence(place: Path, web: str, name: str) -> None:
    """Nothing is left of it, and what may be secret in it is not said."""
    pack(place, "zip", "web/short")
    message = refused(f"{web}/{name}?key=secret")
    assert message.startswith(f"'{web}/{name}' cannot be downloaded: ")
    assert "secret" not in message
    assert unpacked(place) == []


def test_address_without_the_internet_is_one_sentence(place: Path, closed: int) -> None:
    """With what to do."""
    assert "refused. Switch the internet on, or attach" in refused(f"http://127.0.0.1:{closed}/set.zip")


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/set.zip", "gs://bucket/set.zip", "ul://a/b"])
def test_address_of_another_kind_is_refused(place: Path, address: str) -> None:
    """Nothing is opened that is not on the web."""
    assert "is no address of the web" in refused(address)


def test_password_in_an_address_is_not_said(place: Path, closed: int) -> None:
    """A log is kept."""
    message = refused(f"http://me:secret@127.0.0.1:{closed}/set.zip")
    assert message.startswith(f"'http://127.0.0.1:{closed}/set.zip' cannot be downloaded")
    assert "secret" not in message


def test_download_that_there_is_no_room_for_is_refused(place: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it begins."""
    pack(place, "zip", "web/set")
    written: list[Any] = []
    monkeypatch.setattr(disk, "publish", lambda *given, **_: written.append(given))
    monkeypatch.setattr(disk.DISK, "free", lambda folder: disk.RESERVE + 10)
    with pytest.raises(StorageError, match="MB are needed"):
        find.resolve(f"{web}/set.zip")
    assert (unpacked(place), written) == ([], [])


def test_data_set_that_ultralytics_fetches_from_an_address_is_brought(place: Path, web: str) -> None:
    """By its `download:`, when training starts; then it is here for all who ask."""
    make(place / "made/coco8")
    shutil.make_archive(str(place / "web/coco8"), "zip", place / "made")
    known = find.resolve("coco8.yaml")
    assert find.bring(replace(known, values={})) == replace(known, values={})
    here = find.bring(replace(known, values={**known.values, "download": f"{web}/coco8.zip"}))
    assert [file.name for file in Path(here.values["train"]).iterdir()] == ["0.jpg"]
    assert (len(here.names), "download" in here.values) == (80, False)
    assert setup.remembered(here, place / "copy.yaml") == "coco8.yaml"
    packed.fetched(f"{web}/coco8.zip").rename(packed.fetched(str(known.values["download"])))
    assert find.resolve("coco8").values["train"].startswith(str(place / "scratch"))


def test_training_on_a_data_set_that_is_downloaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked through like any other, and brought again where the best model is measured without it."""
    values = training.settings(place / "made", epochs=1)
    folder = Path(values["data"]).parent.rename(place / "made/coco8")
    archive = shutil.make_archive(str(place / "coco8"), "zip", folder.parent, folder.name)
    monkeypatch.setattr(packed, "_download", lambda address, path: shutil.copy(archive, path))
    trained = training.train({**values, "data": "coco8.yaml"})
    assert (trained["epoch"], len(trained["architecture"]["names"])) == (1, 80)
    assert trained["architecture"]["data"]["path"] == "coco8.yaml"
    assert trained["architecture"]["data"]["fingerprint"]["train"]["count"] == 12
    disk.remove(packed.folder())
    assert evaluation.evaluate(load(training._no_file(), {**values, "data": "coco8.yaml"}))["images"] == 4
