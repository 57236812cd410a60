"""Where am I: folders, session time and GPUs, all of it from the environment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kit.errors import StorageError
from kit.kaggle import session
from kit.yolo import environment


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interactive session on Kaggle that began at second 1000."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setenv("KIT_SESSION_START", "1000")


def test_kaggle_is_told_by_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colab's variable is set on Kaggle too and says nothing; Kaggle's says interactive or batch."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert not session.on_kaggle()
    assert session.run_type() == "local"
    for value, word in (("Interactive", "interactive"), ("Batch", "batch")):
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", value)
        assert session.on_kaggle()
        assert session.run_type() == word


def test_folders_are_kaggles_on_kaggle(kaggle: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept lies in /kaggle/working, what is attached in /kaggle/input."""
    monkeypatch.delenv("KIT_WORKING", raising=False)
    monkeypatch.delenv("KIT_INPUT", raising=False)
    assert session.working() == Path("/kaggle/working")
    assert session.inputs() == Path("/kaggle/input")


def test_working_folder_elsewhere_is_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from Kaggle, runs go where the command was given."""
    monkeypatch.delenv("KIT_WORKING", raising=False)
    monkeypatch.chdir(tmp_path)
    assert session.working() == tmp_path


@pytest.mark.usefixtures("kaggle")
def test_variables_move_the_folders_even_on_kaggle(place: Path) -> None:
    """`$KIT_WORKING`, `$KIT_INPUT` and `$KIT_SCRATCH` override every default."""
    assert session.working() == place / "working"
    assert session.inputs() == place / "input"
    assert session.scratch().parent == place / "scratch"


def test_relative_and_home_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of folder does not move the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("runs", "~/runs"):
        monkeypatch.setenv("KIT_WORKING", text)
        assert session.working() == tmp_path / "runs"


def test_scratch_is_made_for_this_user_alone(place: Path) -> None:
    """Nobody else can plant files in what the kit trusts."""
    assert session.scratch().stat().st_mode & 0o777 == 0o700
    assert session.scratch() == session.scratch()


def test_scratch_that_somebody_planted_is_refused(place: Path) -> None:
    """A link at scratch's name leads into a folder of somebody's choice."""
    (place / "elsewhere").mkdir()
    (place / "scratch" / f"kit-{os.getuid()}").symlink_to(place / "elsewhere")
    with pytest.raises(StorageError, match="Set KIT_SCRATCH to a folder of yours"):
        session.scratch()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_scratch_of_another_user_is_refused(place: Path) -> None:
    """A folder that was made before us by another user is not ours."""
    folder = place / "scratch" / "kit-0"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(StorageError, match="belongs to another user"):
        session.scratch()


def test_session_start_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """`$KIT_SESSION_START` is in Unix seconds."""
    monkeypatch.setenv("KIT_SESSION_START", "1234.5")
    assert session.started() == 1234.5


def test_session_start_lies_in_the_past_and_does_not_move() -> None:
    """Without the variable it is this process's start, which is the same whenever it is asked."""
    assert session.started() == session.started()
    assert session.started() < time.time()


def test_session_without_a_limit_has_no_deadline() -> None:
    """Away from Kaggle nobody ends the session."""
    assert session.deadline("auto") is None


@pytest.mark.usefixtures("kaggle")
def test_deadline_is_kaggles_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 hours on CPU and GPU, 9 on a TPU, counted from the session's start."""
    assert session.deadline("auto") == 1000 + 12 * 3600
    monkeypatch.setenv("TPU_NAME", "local")
    assert session.deadline("auto") == 1000 + 9 * 3600


def test_hours_that_were_given_hold_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kit.session_hours` beats the platform's limit, on Kaggle and away from it."""
    monkeypatch.setenv("KIT_SESSION_START", "1000")
    assert session.deadline(0.5) == 1000 + 1800
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert session.deadline(9) == 1000 + 9 * 3600


@pytest.mark.parametrize(
    ("script", "names"),
    [("echo 'Tesla T4'; echo 'Tesla T4'", ["Tesla T4", "Tesla T4"]), ("echo failed; exit 9", []), (":", [])],
)
def test_gpus_are_what_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, names: list[str]
) -> None:
    """One name per GPU; a driver that answers with an error means none."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert session.gpus() == names


def test_machine_without_nvidia_smi_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program is missing there is no GPU to train on."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert session.gpus() == []


def test_driver_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one that cannot be started an error: training asks torch itself."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    for text in ("#!/bin/sh\necho 'Tesla T4'\nexec /bin/sleep 60\n", "#!/no/such/shell\n"):
        program.write_text(text)
        program.chmod(0o755)
        begun = time.monotonic()
        assert session.gpus(limit=0.5) == []
        assert time.monotonic() - begun < 10


def test_environment_keeps_ultralytics_at_home_and_what_was_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings go to scratch and models load through the allow-list; a variable of the user's own is left alone."""
    names = "YOLO_CONFIG_DIR", "YOLO_OFFLINE", "YOLO_VERBOSE", "ULTRALYTICS_SAFE_LOAD", "CUBLAS_WORKSPACE_CONFIG"
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("YOLO_VERBOSE", "true")
    environment.prepare()
    assert os.environ["YOLO_CONFIG_DIR"] == str(session.scratch())
    assert os.environ["YOLO_OFFLINE"] == "true"
    assert os.environ["ULTRALYTICS_SAFE_LOAD"] == "true"
    assert os.environ["YOLO_VERBOSE"] == "true"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_kaggle_keeps_twenty_gigabytes_of_the_working_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free is the lesser of the disk's room and of what is left of them; a second name takes no room."""
    disk = session.free(session.working())
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("KIT_QUOTA", "10000000")
    (place / "working/runs").mkdir()
    (place / "working/runs/file").write_bytes(bytes(4_000_000))
    (place / "working/again").hardlink_to(place / "working/runs/file")
    assert 5_900_000 < session.free(session.working() / "runs") <= 6_000_000
    assert session.free(session.scratch()) > disk // 2
    (place / "working/more").write_bytes(bytes(7_000_000))
    assert session.free(session.working()) == 0
