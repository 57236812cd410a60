"""Stores with the real clients: a folder, S3 on loopback, Kaggle's and Hugging Face's clients against stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.backup import manifests
from kit.backup.manifests import Manifest, parse, stored
from kit.backup.secrets import NotReadyError, describe, refused, take_secrets
from kit.backup.stores import Store, open_store
from kit.errors import ConfigError
from kit.kaggle import session
from kit.store.peek import checksum
from tests.help.standins import Hub, Kaggle

TOKEN = "a-very-secret-token"  # noqa: S105  # of the stand-ins
SECRETS = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID")


@pytest.fixture(autouse=True)
def no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token of this machine's, and no cache of its own."""
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "KAGGLE_CONFIG_DIR", "KAGGLEHUB_CACHE", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("DISABLE_KAGGLE_CACHE", "true")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/a folder/deep")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket on a real S3 server on loopback."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
    store: Any = open_store(f"s3://bucket{port}/some/where")
    store.fs.mkdir(f"bucket{port}")
    yield store
    server.stop()


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    pytest.importorskip("kagglehub")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    with Kaggle(TOKEN) as server:
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub(TOKEN) as server:  # HF_ENDPOINT is read once, when the client is imported
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "".join(template[1:]))
        yield server


@pytest.fixture(params=["folder", "s3", "kaggle", "hub"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each kind of store in turn, empty."""
    server = request.getfixturevalue(request.param)
    address = {"kaggle": "kaggle://me/run", "hub": "hf://me/run/some/where"}.get(request.param)
    return open_store(address) if address else server


def backup(folder: Path, step: int, run: str = "one", **files: bytes) -> tuple[Manifest, dict[str, Path]]:
    """Return what is handed to a store, its files alone in a folder."""
    place = folder / f"pins-{run}-{step}"
    place.mkdir()
    paths = {}
    for name, content in files.items():
        paths[f"{name}.pt"] = place / f"{name}.pt"
        paths[f"{name}.pt"].write_bytes(content)
    described = {name: {"size": path.stat().st_size, "sha256": checksum(path)} for name, path in paths.items()}
    facts = {"run_id": run, "identity": {"task": "detect"}, "branch": 0, "step": step, "epoch": 1, "epochs": 2}
    return {**facts, "best_map": 0.5, "time": 1e9 + step, "replaces": [], "files": described}, paths


def test_store_gives_back_what_it_was_given(store: Store, tmp_path: Path) -> None:
    """Empty at first; then the manifests, the newest first, and the bytes that they name, with their checksums."""
    store.check()
    assert store.manifests() == []
    best, pushed = os.urandom(1000), list[Manifest]()
    for step in (1, 2, 3):
        manifest, paths = backup(tmp_path, step, latest=os.urandom(100_000), best=best)
        store.push(manifest, paths)
        pushed.insert(0, manifest)
        assert store.manifests("one")[:2] == pushed[:2]
        store.prune("one", pushed[:2])
        assert store.manifests() == pushed[:2]
        for name, path in paths.items():
            store.fetch(manifest, name, tmp_path / "fetched")
            assert (tmp_path / "fetched").read_bytes() == path.read_bytes()
            assert store.checksum(manifest, name) == manifest["files"][name]["sha256"]
    assert store.checksum(pushed[1], "latest.pt") == pushed[1]["files"]["latest.pt"]["sha256"]
    assert store.odd == set()


@pytest.mark.parametrize("store", ["folder", "s3", "hub"], indirect=True)
def test_runs_lie_beside_each_other(store: Store, tmp_path: Path) -> None:
    """Each keeps its own."""
    store.check()
    assert store.shared
    pushed = []
    for run in ("one", "two"):
        manifest, paths = backup(tmp_path, 1, run, latest=run.encode())
        store.push(manifest, paths)
        pushed.append(manifest)
    assert sorted(store.manifests(), key=lambda manifest: str(manifest["run_id"])) == pushed
    store.fetch(pushed[0], "latest.pt", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"one"


@pytest.mark.parametrize("store", ["folder", "s3", "hub"], indirect=True)
def test_what_no_kept_backup_names_is_removed(store: Any, tmp_path: Path) -> None:
    """Also what an upload has left that was cut off; a backup that came meanwhile stays."""
    store.check()
    pushed = [backup(tmp_path, step, latest=bytes([step]), best=b"best") for step in range(1, 6)]
    for manifest, paths in pushed:
        store.push(manifest, paths)
    store.push(*backup(tmp_path, 1, "two", latest=b"another run's"))
    store.prune("one", [pushed[2][0], pushed[3][0]])
    assert [each["step"] for each in store.manifests("one")] == [5, 4, 3]
    assert len(store.fs.ls(f"{store.root}/one", refresh=True)) == 7
    assert len(store.fs.ls(f"{store.root}/two", refresh=True)) == 2


def test_list_that_is_an_old_one_is_noticed(folder: Any, tmp_path: Path) -> None:
    """What came after it is asked for by its number; what has gone since is no sign that there is nothing."""
    pushed = [backup(tmp_path, step, latest=bytes([step]))[0] for step in range(1, 6)]
    for step, manifest in enumerate(pushed, 1):
        folder.push(manifest, {"latest.pt": tmp_path / f"pins-one-{step}/latest.pt"})
    everything = folder._list
    folder._list = lambda path: [name for name in everything(path) if "manifest-000005" not in name]
    assert folder.manifests("one")[0]["step"] == 5
    folder.prune("one", pushed[3:])
    folder._list = lambda path: [*everything(path), "manifest-000001.json"]
    with pytest.raises(NotReadyError, match=r"manifest-000001\.json' is listed and not there"):
        folder.manifests("one")


def test_torn_manifest_is_passed_over(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before it counts, whose files are still there."""
    manifest, paths = backup(tmp_path, 1, latest=b"1")
    folder.push(manifest, paths)
    (newest,) = Path(folder.root, "one").glob("manifest-*.json")
    newest.with_name("manifest-000002.json").write_bytes(newest.read_bytes()[:-10])
    monkeypatch.setattr(manifests, "PAUSE_S", 0)
    assert folder.manifests() == [manifest]
    assert folder.odd == {str(newest.with_name("manifest-000002.json"))}


def test_page_in_place_of_a_manifest_is_asked_for_again(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next answer is the manifest."""
    folder.push(*backup(tmp_path, 1, latest=b"1"))
    monkeypatch.setattr(manifests, "PAUSE_S", 0)
    cat, asked = folder.fs.cat_file, list[str]()

    def page(path: str) -> bytes:
        asked.append(path)
        return b"<!DOCTYPE html>" if len(asked) == 1 else bytes(cat(path))

    folder.fs.cat_file = page
    assert [each["step"] for each in folder.manifests()] == [1]
    assert folder.odd == set()


def test_key_that_may_not_delete_is_good_enough(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded then stays, and that is all."""

    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(folder.fs, "rm_file", refuse)
    folder.check()


def test_list_of_files_is_no_manifest(folder: Any, tmp_path: Path) -> None:
    """Whatever a manifest of somebody else holds, the others count."""
    manifest, _ = backup(tmp_path, 1, latest=b"1")
    assert parse(json.dumps(manifest).encode()) == manifest
    assert parse(json.dumps({**manifest, "files": ["latest.pt"]}).encode()) is None


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b"\xff", b'{"run_id": "one"}'])
def test_what_is_no_manifest_is_none(text: bytes) -> None:
    """Somebody else's file in the folder does no harm."""
    assert parse(text) is None


def test_kaggle_gets_a_private_data_set_with_plain_names(kaggle: Kaggle, tmp_path: Path) -> None:
    """Attached to a notebook, its latest.pt and best.pt are found like any other; each upload is a whole version."""
    store = open_store("kaggle://me/run")
    for step in (1, 2):
        store.push(*backup(tmp_path, step, latest=bytes([step]), best=b"best"))
    assert kaggle.private
    assert [sorted(version) for version in kaggle.versions] == [["best.pt", "latest.pt", "manifest.json"]] * 2
    assert not store.shared


def test_kaggle_data_set_that_is_not_ready_is_not_taken_for_none(kaggle: Kaggle, tmp_path: Path) -> None:
    """It answers 403 for one that is not there, for one that it still works on, and for a while."""
    store = open_store("kaggle://me/run")
    assert store.manifests() == []
    first, second = (backup(tmp_path, step, latest=bytes([step])) for step in (1, 2))
    store.push(*first)
    kaggle.working = 1
    with pytest.raises(NotReadyError):
        store.manifests()
    kaggle.working = 0
    store.push(*second)
    kaggle.working = 1
    assert store.manifests() == [first[0]]
    kaggle.early = True
    with pytest.raises(NotReadyError, match="version 2"):
        store.manifests()
    kaggle.working = 0
    assert store.manifests() == [second[0], first[0]]
    kaggle.forbids = True
    with pytest.raises(NotReadyError):
        store.manifests()


def test_kaggle_is_asked_over_http_also_in_a_notebook(
    kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There its client would attach a mount and wait for it; and the user's token goes before the notebook's own."""
    own = tmp_path / "own"
    own.write_text("the-notebooks-own")
    for name, value in {"KERNEL_RUN_TYPE": "Batch", "DATA_PROXY_URL": "http://localhost:9"}.items():
        monkeypatch.setenv(f"KAGGLE_{name}", value)
    monkeypatch.setenv("KAGGLE_API_V1_TOKEN", str(own))
    monkeypatch.setenv("KAGGLE_USER_SECRETS_TOKEN", "jwt")
    monkeypatch.setenv("KIT_SCRATCH", str(tmp_path))
    monkeypatch.delenv("DISABLE_KAGGLE_CACHE")
    monkeypatch.delenv("KAGGLEHUB_CACHE")
    store = open_store("kaggle://me/run")
    manifest, paths = backup(tmp_path, 1, latest=b"1")
    store.push(manifest, paths)
    assert store.manifests() == [manifest]


def test_hub_gets_private_commits_and_old_versions_are_deleted_for_good(hub: Hub, tmp_path: Path) -> None:
    """But neither what a file of the repository still holds, nor what is not this run's."""
    store = open_store("hf://me/run")
    store.check()
    names = {"ours": "one/latest-1.pt", "copied": "one/best-1.pt", "theirs": "model.pt", "other run's": "two/best.pt"}
    hub.stored = [
        {"fileOid": oid, "filename": name, "oid": oid, "pushedAt": "2026-01-01T00:00:00.000Z", "ref": None, "size": 1}
        for oid, name in names.items()
    ]
    hub.files = {"copy.pt": b"1"}
    hub.large = {"copy.pt": "copied"}
    first, second = (backup(tmp_path, step, latest=bytes([step]), best=b"2") for step in (1, 2))
    store.push(*first)
    assert (hub.commits, hub.private) == (1, True)
    store.push(*second)
    assert hub.deleted == []
    store.prune("one", [second[0]])
    assert hub.deleted == ["ours"]
    assert hub.commits == 3


def test_hub_tells_the_checksum_of_a_large_file(hub: Hub, tmp_path: Path) -> None:
    """It is that of the bytes which it holds, so they need not be downloaded."""
    store: Any = open_store("hf://me/run")
    store.check()
    manifest, paths = backup(tmp_path, 1, latest=b"1")
    store.push(manifest, paths)
    hub.large = {f"one/{stored('latest.pt', manifest)}": "0" * 64}
    hub.asked.clear()
    assert store.checksum(manifest, "latest.pt") == "0" * 64
    assert not [line for line in hub.asked if "/resolve/" in line]


@pytest.mark.parametrize(("address", "name"), [("kaggle://me/run", "KAGGLE_API_TOKEN"), ("hf://me/run", "HF_TOKEN")])
def test_missing_token_is_asked_for_by_name(address: str, name: str) -> None:
    """Before anything is looked up."""
    pytest.importorskip({"kaggle": "kagglehub", "hf": "huggingface_hub"}[address.partition(":")[0]])
    with pytest.raises(ConfigError, match=name):
        open_store(address).check()


@pytest.mark.parametrize("kind", ["kaggle", "hub"])
def test_wrong_token_is_told_from_a_missing_network(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one ends the start, the other does not; neither message holds the token."""
    server = request.getfixturevalue(kind)
    name, address = {"kaggle": ("KAGGLE_API_TOKEN", "kaggle://me/run"), "hub": ("HF_TOKEN", "hf://me/run")}[kind]
    monkeypatch.setenv(name, "another-token")
    store = open_store(address)
    caught: list[Exception] = []
    for wrong in (True, False):
        if not wrong:
            server.__exit__()
        try:
            store.check()
            store.manifests()
        except Exception as error:
            caught.append(error)
    assert [refused(error) for error in caught] == [True, False]
    assert not any("another-token" in describe(error) for error in caught)


def test_bucket_that_is_not_there_ends_the_start(s3: Any) -> None:
    """It is not made: the name is mistyped more often than not."""
    with pytest.raises(FileNotFoundError, match="bucket does not exist") as caught:
        open_store("s3://nowhere/at/all").check()
    assert refused(caught.value)


@pytest.mark.parametrize(
    ("address", "module", "advice"),
    [
        ("kaggle://me/run", "kagglehub", "pip install kagglehub"),
        ("hf://me/run", "huggingface_hub", "pip install huggingface_hub"),
        ("s3://bucket", "s3fs", "pip install s3fs"),
        ("gs://bucket", "gcsfs", "pip install gcsfs"),
        ("nothing://there", "", "for the schemes"),
    ],
)
def test_missing_client_is_asked_for_by_name(address: str, module: str, advice: str) -> None:
    """One sentence with the command."""
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"  # Python's way to say: not installed
        "from kit.backup.stores import open_store; from kit.errors import ConfigError\n"
        f"try: open_store({address!r})\nexcept ConfigError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(session.REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert advice in done.stdout


def test_secrets_come_from_kaggle_and_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that the address needs are asked for; one that is not there is no error."""
    asked: list[str] = []

    class UserSecretsClient:
        def get_secret(self, name: str) -> str:
            asked.append(name)
            if name == "AWS_SESSION_TOKEN":
                raise ValueError("no such secret")
            return f"secret-{name}"

    module = types.ModuleType("kaggle_secrets")
    module.UserSecretsClient = UserSecretsClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "FSSPEC_S3"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    take_secrets("s3")
    assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"
    assert os.environ["AWS_SECRET_ACCESS_KEY"].startswith("secret-")
    assert "AWS_SESSION_TOKEN" not in os.environ
    assert "AWS_ACCESS_KEY_ID" not in asked
    assert not any("KAGGLE" in name or "HF_" in name for name in asked)


def test_problem_is_described_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a value of the environment that looks like a key, nor the signature in a URL."""
    monkeypatch.setenv("FSSPEC_GS", '{"token": {"private_key": "inner-secret"}}')
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
    error = ConnectionError(f"PUT https://host/path?X-Amz-Signature=abc123 with {TOKEN} and inner-secret\nfailed.")
    assert describe(error) == "PUT https://host/path?*** with *** and *** failed."
    assert describe(ValueError()) == "ValueError."
