"""The notebook's first cell, uploaded alone: real git repositories, and servers on the loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kit.kaggle import notebook

QUICK = notebook.BOOTSTRAP.replace("timeout 15", "timeout 1")


class Repository:
    """A repository whose kit says its version and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch", "main")
        self.git("config", "user.name", "Tester")
        self.git("config", "user.email", "tester@example.org")

    @property
    def url(self) -> str:
        return self.folder.as_uri()

    def git(self, *words: str) -> str:
        command = ["git", "-C", str(self.folder), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, version: int) -> str:
        """Commit a version of the kit and return its 40 digits."""
        copy(self.folder, version)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", f"version {version}")
        return self.git("rev-parse", "HEAD")


def copy(folder: Path, version: int) -> Path:
    """Write a version of the kit without a repository, as an attached input has it."""
    (folder / "kit/kaggle").mkdir(parents=True, exist_ok=True)
    (folder / "kit" / "__init__.py").write_text("")
    (folder / "kit" / "part.py").write_text(f"VERSION = {version}\n")
    text = (
        f"from kit.part import VERSION\n\ndef setup():\n    return f'cell {version}, module {{VERSION}} {{__file__}}'\n"
    )
    (folder / "kit/kaggle/bootstrap.py").write_text(text)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Version 1 with the tag v1 on a branch of its own, version 2 on main."""
    made = Repository(tmp_path / "repository")
    made.commit(1)
    made.git("tag", "--annotate", "v1", "--message", "one")
    made.git("branch", "feature/one")
    made.commit(2)
    return made


def run(place: Path, repo: str, ref: str = "main", cell: str = QUICK, **variables: str) -> str:
    """Run the cell in an empty working folder, as a machine without credentials does, and return what it says."""
    kept = {name: os.environ[name] for name in ("PATH", "KIT_SCRATCH", "KIT_INPUT")}
    variables = {**kept, "HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", cell],
        cwd=place / "working",
        env={**variables, "KIT_REPO": repo, "KIT_REF": ref},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("ref", "version"), [("main", 2), ("v1", 1), ("feature/one", 1), ("HEAD", 2), ("commit", 1)])
def test_notebook_alone_clones_what_was_asked_for(place: Path, repository: Repository, ref: str, version: int) -> None:
    """A branch, a tag or a commit, into scratch; the working folder stays empty."""
    said = run(place, repository.url, repository.git("rev-parse", "v1^{}") if ref == "commit" else ref)
    assert f"cell {version}, module {version} {place}/scratch/kaggle-yolo-kit/" in said
    assert list((place / "working").iterdir()) == []


def test_commit_that_is_there_is_not_fetched_again(place: Path, repository: Repository) -> None:
    """A commit never changes, so the network is not asked."""
    commit = repository.git("rev-parse", "HEAD")
    run(place, repository.url, commit)
    shutil.rmtree(repository.folder)
    said = run(place, repository.url, commit)
    assert "cell 2" in said
    assert "could not be cloned" not in said


def test_second_run_in_the_same_kernel_takes_the_new_version(place: Path, repository: Repository) -> None:
    """The branch has moved: no module of the older version is left in memory."""
    commands = f"""
import subprocess
cell = {QUICK!r}
exec(cell)
exec("import kit.part; print('in memory', kit.part.VERSION)")
change = 'sed -i s/2/3/ kit/part.py kit/kaggle/*.py && git commit --quiet --all --message 3'
subprocess.run(change, shell=True, cwd=REPOSITORY, check=True)
exec(cell)
exec("import kit.part; print('in memory', kit.part.VERSION)")
""".replace("REPOSITORY", repr(str(repository.folder)))
    said = run(place, repository.url, cell=commands)
    assert [line[:18] for line in said.splitlines()] == [
        "cell 2, module 2 /",
        "in memory 2",
        "cell 3, module 3 /",
        "in memory 3",
    ]


def test_notebook_in_a_clone_uses_it(place: Path, repository: Repository) -> None:
    """Also from a folder below; nothing is cloned."""
    copy(place, 7)
    assert "cell 7" in run(place, repository.url)
    assert list((place / "scratch").iterdir()) == []


def test_attached_copy_does_not_win_over_the_clone(place: Path, repository: Repository) -> None:
    """One that was forgotten there would else be used for ever, whatever REF says."""
    assert "cell 2" in run(place, repository.url, KIT_COPY=str(copy(place / "input/old", 1)))


@pytest.mark.parametrize("folder", ["kit-copy", "datasets/somebody/kit-copy/kaggle-yolo-kit-main"])
def test_attached_copy_stands_in_without_internet(place: Path, closed: int, folder: str) -> None:
    """The one that is named, in Kaggle's old layout and its new one; the cell says which copy it is."""
    copy(place / "input/other", 6)
    copy(place / "input" / folder, 5)
    named = place / "input" / folder.removesuffix("/kaggle-yolo-kit-main")
    said = run(place, f"http://127.0.0.1:{closed}/kit.git", KIT_COPY=str(named))
    assert f"could not be cloned from http://127.0.0.1:{closed}/kit.git at 'main': the copy in {place}/input" in said
    assert "cell 5" in said


def test_last_of_several_attached_copies_is_taken(place: Path, closed: int) -> None:
    """By name, because Kaggle's dates mean nothing."""
    for version in (2, 1):
        copy(place / f"input/mine/kit-v{version}", version)
    assert "cell 2" in run(place, f"http://127.0.0.1:{closed}/kit.git", KIT_COPY=f"{place}/input/mine")


def test_attached_copy_that_is_not_named_is_not_run(place: Path, closed: int) -> None:
    """A data set of somebody else may hold one: it is said where it lies, and what to write."""
    copy(place / "input/somebody/flowers", 5)
    for named in ("", f"{place}/input/gone"):
        said = run(place, f"http://127.0.0.1:{closed}/kit.git", KIT_COPY=named)
        assert "cell 5" not in said
        assert f"Not used, because COPY does not name it: '{place}/input/somebody/flowers'." in said.splitlines()[0]
    cell = QUICK.replace('COPY = ""', f'COPY = "{place}/input/somebody"')
    assert "cell 5" in run(place, f"http://127.0.0.1:{closed}/kit.git", cell=cell)


def test_named_copy_is_where_wheels_are_looked_for(place: Path, closed: int) -> None:
    """The bootstrap gets to know it; another name in a second run of the cell counts."""
    for version in (1, 2):
        copy(place / f"input/kit-v{version}", version)
    cell = "\n".join(
        QUICK.replace('COPY = ""', f'COPY = "{place}/input/kit-v{version}"')
        + "\nprint('wheels in', os.environ['KIT_WHEELS'])"
        for version in (1, 2)
    )
    said = run(place, f"http://127.0.0.1:{closed}/kit.git", cell=cell)
    assert [line for line in said.splitlines() if line.startswith(("cell", "wheels"))] == [
        line
        for version in (1, 2)
        for line in (
            f"cell {version}, module {version} {place}/input/kit-v{version}/kit/kaggle/bootstrap.py",
            f"wheels in {place}/input/kit-v{version}",
        )
    ]


def test_earlier_clone_stands_in_before_an_attached_copy(place: Path, repository: Repository) -> None:
    """It is of the right REF; the newest of its commits is taken."""
    run(place, repository.url)
    repository.commit(3)
    run(place, repository.url)
    for number, clone in enumerate(sorted((place / "scratch/kaggle-yolo-kit/main").iterdir())):
        newer = "VERSION = 3" in (clone / "kit/part.py").read_text()
        os.utime(clone / "kit/kaggle/bootstrap.py", (newer * 100 + number,) * 2)
    copied = str(copy(place / "input/old", 1))
    shutil.rmtree(repository.folder)
    said = run(place, repository.url, KIT_COPY=copied)
    assert f"the copy in {place}/scratch" in said
    assert "cell 3" in said


@pytest.mark.parametrize("ref", ["v9", "0123456789012345678901234567890123456789"])
def test_bad_ref_is_one_sentence_and_nothing_stands_in(place: Path, repository: Repository, ref: str) -> None:
    """Another version than the one that was asked for is no way out."""
    said = run(place, repository.url, ref, KIT_COPY=str(copy(place / "input/old", 1)))
    assert f"The kit could not be cloned from {repository.url} at '{ref}': it has no such tag, branch or commit" in said
    assert said.splitlines()[1].startswith("fatal: "), "what git itself says stands below"


def test_repository_that_is_not_there_is_one_sentence(place: Path) -> None:
    """A path in place of an address."""
    assert "it is private or misspelt: correct REPO" in run(place, (place / "nowhere").as_uri())


@pytest.fixture
def answers(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that answers everything with one HTTP status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            if request.param == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="private"')
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("answers", [401, 403, 404], indirect=True)
@pytest.mark.parametrize("user", ["", "someone:secret-token@"])
def test_private_repository_is_one_sentence_without_a_question(place: Path, answers: int, user: str) -> None:
    """No password is asked for, and a token in the address is not printed."""
    said = run(place, f"http://{user}127.0.0.1:{answers}/kit.git")
    assert f"could not be cloned from http://127.0.0.1:{answers}/kit.git at 'main': it is private or misspelt" in said
    assert "token" not in said


def test_token_in_the_address_is_not_kept(place: Path, repository: Repository) -> None:
    """The clone in scratch knows nothing of where it came from."""
    run(place, repository.url)
    clone = next((place / "scratch/kaggle-yolo-kit/main").iterdir())
    assert "remote" not in (clone / ".git/config").read_text()


def test_no_internet_is_one_sentence(place: Path, closed: int) -> None:
    """With both ways out."""
    said = run(place, f"http://127.0.0.1:{closed}/kit.git")
    assert "at 'main': is the internet on (Session options)? Or attach a copy of the repository" in said
    assert said.splitlines()[1].startswith("fatal: "), "what git itself says stands below"


def test_server_that_never_answers_is_given_up(place: Path) -> None:
    """With git's own limits it would hold the cell for minutes; none of its processes is left behind."""
    assert "timeout 15" in notebook.BOOTSTRAP
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "is the internet on" in run(place, f"http://127.0.0.1:{port}/kit.git")
        assert not [words for words in processes() if f":{port}/kit.git" in words]


def processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return found


def test_machine_without_git_is_told(place: Path) -> None:
    """And uses a copy where there is one."""
    (place / "bin").mkdir()
    (place / "bin/sh").symlink_to("/bin/sh")
    assert "git is not installed: attach a copy" in run(place, "https://example.org/kit.git", PATH=str(place / "bin"))
    copied = str(copy(place / "input/kit-copy", 5))
    assert "cell 5" in run(place, "https://example.org/kit.git", PATH=str(place / "bin"), KIT_COPY=copied)


def test_half_made_clone_is_never_used(place: Path, repository: Repository) -> None:
    """Killed when the first file was there: the next run clones anew, and without internet says that it cannot."""
    (place / "bin").mkdir()
    (place / "bin/git").write_text(
        f"#!/bin/sh\nPATH={os.environ['PATH']}\n"
        'case "$1" in checkout) mkdir -p kit/kaggle && touch kit/kaggle/bootstrap.py killed && exec sleep 60;; esac\n'
        'exec git "$@"\n'
    )
    (place / "bin/git").chmod(0o755)
    child = subprocess.Popen(
        [sys.executable, "-c", QUICK],
        cwd=place / "working",
        env={**os.environ, "PATH": f"{place}/bin:{os.environ['PATH']}", "KIT_REPO": repository.url, "KIT_REF": "main"},
        process_group=0,
    )
    until = time.monotonic() + 30
    while not list((place / "scratch").rglob("killed")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert list((place / "scratch").rglob("killed"))
    assert "is private or misspelt" in run(place, repository.url + "-gone")
    assert "cell 2" in run(place, repository.url)
