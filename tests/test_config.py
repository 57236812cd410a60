"""Settings: precedence, types, what is refused, and what may change within a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml

import kit
from kit import cli, config
from kit.config import Config
from kit.errors import ConfigError
from kit.kaggle import session
from kit.process import launch
from kit.yolo import settings as yolo_settings
from kit.yolo.settings import RESERVED, from_dict

BASE = "model: a.yaml\ndata: b.yaml\n"
Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a config from the text of a file and from words."""

    def load(text: str = BASE, *words: str) -> Config:
        (tmp_path / "config.yaml").write_text(text)
        return yolo_settings.load(tmp_path / "config.yaml", words)

    return load


def refused(load: Load, *words: str, text: str = BASE) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *words)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_words_beat_the_file_and_the_file_beats_the_defaults(load: Load) -> None:
    """Defaults < YAML file < `key=value`, for Ultralytics' settings and for the kit's."""
    text = BASE + "epochs: 7\nimgsz: 320\nkit:\n  max_lost_s: 7\n  run: runs/file\n"
    checked = load(text, "epochs=9", "kit.max_lost_s=9")
    assert [checked.get(name) for name in ("epochs", "imgsz", "batch")] == [9, 320, 16]
    assert (checked.kit.max_lost_s, checked.kit.run, checked.kit.max_cost_percent) == (9, "runs/file", 1.0)


def test_later_word_beats_an_earlier_one(load: Load) -> None:
    """The last value that was given counts."""
    assert load(BASE, "epochs=7", "epochs=9").get("epochs") == 9


@pytest.mark.parametrize(
    ("text", "words", "slices"),
    [
        ("kit:\n  ranks: 3\n", [], 3),
        ("", ["kit.ranks=3"], 3),
        ("kit:\n  slices: auto\n", ["kit.ranks=3"], 3),
        ("kit:\n  ranks: 2\n", ["kit.slices=3"], 3),
    ],
)
def test_earlier_name_of_a_setting_is_taken_with_a_hint(
    load: Load, capsys: pytest.CaptureFixture[str], text: str, words: list[str], slices: int
) -> None:
    """In a file, in words, and with both; words beat the file by whichever name."""
    checked = load(BASE + text, *words)
    assert checked.kit.slices == slices
    assert capsys.readouterr().err == "The setting 'kit.ranks' is called 'kit.slices' now; the old name still works.\n"


def test_earlier_name_in_a_checkpoints_config_is_taken_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can change it there."""
    assert from_dict({"model": "a.yaml", "kit": {"ranks": 3}}).kit.slices == 3
    assert capsys.readouterr().err == ""


def test_settings_may_be_a_mapping(tmp_path: Path) -> None:
    """`kit.train(epochs=9)` hands over values, not words."""
    (tmp_path / "config.yaml").write_text(BASE)
    checked = yolo_settings.load(tmp_path / "config.yaml", {"epochs": 9, "kit.run": "runs/a"})
    assert (checked.get("epochs"), checked.kit.run) == (9, "runs/a")


def test_only_what_differs_from_the_defaults_is_kept(load: Load) -> None:
    """A setting given at its default is the same as one that is not given."""
    assert load(BASE, "epochs=100", "batch=8").train == {"model": "a.yaml", "data": "b.yaml", "batch": 8}


def test_run_folder_lies_below_the_working_folder(place: Path, load: Load) -> None:
    """`kit.run` is relative to what Kaggle keeps."""
    assert load(BASE).run_folder == place / "working" / "runs" / "train"
    assert load(BASE, "kit.run=runs/b").run_folder == place / "working" / "runs" / "b"


@pytest.mark.parametrize("name", ["quickstart.yaml", "kaggle_config.yaml"])
def test_shipped_configs_are_good(name: str) -> None:
    """Both files in `configs/` pass the check that they are read with."""
    assert yolo_settings.load(session.REPOSITORY / "configs" / name).get("model")


def test_default_config_depends_on_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded data set away from Kaggle, the attached one on Kaggle."""
    assert yolo_settings.load().get("data") == "shapes"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert yolo_settings.load().get("data") == "auto"


# --- words


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("lr0=1e-3", 0.001),
        ("lr0=1E3", 1000.0),
        ("lr0=-.5e+2", -50.0),
        ("lr0=0.001", 0.001),
        ("epochs=50", 50),
        ("plots=false", False),
        ("classes=[0, 2]", [0, 2]),
        ("freeze=null", None),
        ("model=yolo11n.pt", "yolo11n.pt"),
        ("data=/a b/c=d.yaml", "/a b/c=d.yaml"),
        ("device='0'", "0"),
        ("model=[1", "[1"),
        ("model=1e-3.pt", "1e-3.pt"),
    ],
)
def test_word_is_read_as_yaml_reads_it_and_1e_3_as_a_number(word: str, value: Any) -> None:
    """YAML 1.1 takes `1e-3` for a text; everything else is as in a file."""
    parsed = config.parse_override(word)[1]
    assert parsed == value
    assert type(parsed) is type(value)


def test_1e_3_in_a_file_is_a_number_too(load: Load) -> None:
    """A learning rate is written the same way in a file and on the command line."""
    assert load(BASE + "lr0: 1e-3\n").get("lr0") == 0.001


def test_1e_3_in_the_block_of_the_kit_is_a_number_too(load: Load) -> None:
    """The kit's own numbers may be written in the same ways as Ultralytics'."""
    assert load(BASE + "kit:\n  max_lost_s: 1e1\n").kit.max_lost_s == 10.0


@pytest.mark.parametrize("word", ["epochs", "=5", "epochs:50", ""])
def test_word_without_a_name_and_a_value_is_refused(load: Load, word: str) -> None:
    """The message shows how to write one."""
    assert "Write key=value" in refused(load, word)


@pytest.mark.parametrize(
    "value", [1, 2.5, 1e-5, True, None, "text", "a=b", "3", "é", "it's", [1, 2], "", "1:30", "yes", "#a", "a: b"]
)
def test_setting_written_as_a_word_is_read_back_the_same(value: Any) -> None:
    """What the notebook hands to the training process arrives as it was: value and type."""
    (word,) = config.to_args({"name": value})
    parsed = config.parse_override(word)[1]
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize("value", ["\U0001f600", Path("data.yaml")])
def test_rarer_setting_written_as_a_word_is_read_back_the_same(value: Any) -> None:
    """So do an emoji, and a `Path` as its text."""
    (word,) = config.to_args({"name": value})
    assert config.parse_override(word)[1] == (str(value) if isinstance(value, Path) else value)


# --- what is refused


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("epoch", "epochs"), ("batchsize", "batch"), ("imgsize", "imgsz"), ("kit.rnu", "kit.run"), ("max_lost_s", "kit.")],
)
def test_unknown_setting_is_refused_with_the_nearest_name(load: Load, name: str, nearest: str) -> None:
    """A typo never trains for hours with the default."""
    message = refused(load, f"{name}=3")
    assert f"There is no setting '{name}' (given: 3)" in message
    assert f"Did you mean '{nearest}" in message


def test_unknown_setting_like_no_other_is_refused_with_a_place_to_look(load: Load) -> None:
    """Without a near name the message says where the names are."""
    assert "See configs/kaggle_config.yaml" in refused(load, "xqzw=3")
    assert "There is no setting 'xqzw'" in refused(load, text=BASE + "xqzw: 3\n")


def test_unknown_setting_in_the_block_of_the_kit_is_refused(load: Load) -> None:
    """A typo under `kit:` is named as on the command line."""
    assert "'kit.max_lost'" in refused(load, text=BASE + "kit:\n  max_lost: 3\n")


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("epochs=many", "int"),
        ("epochs=1.5", "int"),
        ("epochs=true", "int"),
        ("epochs=null", "int"),
        ("epochs=[1]", "int"),
        ("batch=big", "float or int"),
        ("batch=true", "float or int"),
        ("lr0=fast", "float"),
        ("lr0=false", "float"),
        ("plots=1", "bool"),
        ("plots=maybe", "bool"),
        ("classes=cat", "int or list"),
        ("classes=[cat]", "int or list"),
        ("imgsz=large", "int or list"),
    ],
)
def test_value_of_the_wrong_type_is_refused(load: Load, word: str, wanted: str) -> None:
    """The message says what, the value and what is wanted."""
    name, value = config.parse_override(word)
    message = refused(load, word)
    assert f"The setting '{name}' must be {wanted}" in message
    assert f"but got {value!r}" in message


@pytest.mark.parametrize(
    "word",
    ["lr0=1", "batch=-1", "batch=0.7", "scale=[0.1, 0.9]", "imgsz=[64, 32]", "classes=[0]", "freeze=null", "cache=ram"],
)
def test_value_of_any_type_that_a_setting_takes_is_accepted(load: Load, word: str) -> None:
    """A whole number does where a fraction does, and a setting of several types takes each."""
    name, value = config.parse_override(word)
    assert load(BASE, word).get(name) == value


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_settings_that_are_the_kits_own_business_are_refused_with_a_hint(load: Load, name: str) -> None:
    """Each says what to do instead, or why not."""
    message = refused(load, f"{name}=something")
    assert f"'{name}'" in message
    assert RESERVED[name] in message


def test_settings_of_the_design_are_among_the_refused_ones() -> None:
    """The contract names these four."""
    assert {"resume", "project", "name", "save_dir"} <= set(RESERVED)


@pytest.mark.parametrize(
    "word",
    [
        "kit.run=",
        "kit.run=/abs/olute",
        "kit.run=../outside",
        "kit.run=runs/../../outside",
        "kit.max_lost_s=0",
        "kit.max_lost_s=-3",
        "kit.max_lost_s=soon",
        "kit.max_lost_s=.nan",
        "kit.max_lost_s=true",
        "kit.max_lost_s=auto",
        "kit.max_cost_percent=0",
        "kit.max_cost_percent=null",
        "kit.backup_required=1",
        "kit.backup_required=maybe",
        "kit.remind_epochs=-1",
        "kit.restarts=-1",
        "kit.restarts=auto",
        "kit.remind_epochs=2.5",
        "kit.remind_epochs=true",
        "kit.session_hours=long",
        "kit.session_hours=0",
        "kit.session_hours=-1",
    ],
)
def test_setting_of_the_kit_out_of_its_range_is_refused(load: Load, word: str) -> None:
    """The message names the setting with its prefix and says what it must be."""
    name, value = config.parse_override(word)
    message = refused(load, word)
    assert f"The setting '{name}' must be" in message
    assert repr(value) in message


@pytest.mark.parametrize("word", ["kit.session_hours=auto", "kit.session_hours=9", "kit.session_hours=0.5"])
def test_hours_of_a_session_are_a_number_or_auto(load: Load, word: str) -> None:
    """The only setting of the kit with a word for a value."""
    assert load(BASE, word).kit.session_hours == config.parse_override(word)[1]


@pytest.mark.parametrize(
    "address",
    [
        "kaggle://me/my-run",
        "hf://me/my-run",
        "hf://datasets/me/my.run/folder",
        "s3://bucket/path",
        "gs://bucket",
        "file:///folder",
        "sftp://me@host/folder",
        "abfs://container@account.dfs.core.windows.net/path",
        "null",
        "",
    ],
)
def test_address_of_a_backup_is_accepted(load: Load, address: str) -> None:
    """A Kaggle data set, a Hugging Face repository, whatever fsspec knows, or none."""
    assert load(BASE, f"kit.backup={address}").kit.backup == (address if "://" in address else None)


@pytest.mark.parametrize(
    "address",
    [
        "/folder",
        "file://folder",
        "bucket/path",
        "kaggle://me",
        "kaggle://me/a/b",
        "hf://me",
        "s3://",
        "3",
        "[1]",
        "true",
    ],
)
def test_what_is_no_address_of_a_backup_is_refused_with_examples(load: Load, address: str) -> None:
    """A path needs its scheme, a data set and a repository both parts of their name."""
    message = refused(load, f"kit.backup={address}")
    assert "kaggle://owner/slug, hf://owner/repo, s3://bucket/path or file:///folder" in message


@pytest.mark.parametrize(
    "address",
    [
        "s3://user:SECRETSECRETSECRET12@bucket/path",
        "kaggle://me:SECRETSECRETSECRET12@me/run",
        "https://host/path?token=SECRETSECRETSECRET12",
        "https://host/?SECRETSECRETSECRET12",
        "hf://hf_SECRETSECRETSECRET12/repo",
        "s3://AKIASECRETSECRETSECRET12@bucket",
        "s3://[SECRETSECRETSECRET12/bucket",
    ],
)
def test_address_that_holds_a_secret_is_refused_without_showing_it(load: Load, address: str) -> None:
    """Settings are saved in checkpoints: the token's place is in Kaggle's secrets or the environment."""
    message = refused(load, f"kit.backup='{address}'")
    assert "keep the rest in Kaggle's secrets or the environment" in message
    assert "SECRET" not in message


def test_folder_of_what_was_fetched_depends_on_the_run_and_the_address(place: Path, load: Load) -> None:
    """Two runs with one store, and one run with two, do not find each other's."""
    words = [(), ("kit.run=runs/b",), ("kit.backup=s3://other",)]
    folders = {load(BASE, "kit.backup=s3://bucket", *more).restored_folder for more in words}
    assert len(folders) == 3
    assert all(folder and folder.is_relative_to(session.scratch()) for folder in folders)
    assert load(BASE).restored_folder is None


@pytest.mark.parametrize("text", ["data: b.yaml\n", "model: a.yaml\n", "model:\ndata: b.yaml\n"])
def test_model_and_data_must_be_given(load: Load, text: str) -> None:
    """There is no default to train; the message says which is missing."""
    missing = "data" if "data" not in text else "model"
    assert f"'{missing}' is missing" in refused(load, text=text)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just text\n", "a: [1\n", "kit: 3\n" + BASE, "kit: [1]\n" + BASE])
def test_file_that_is_no_config_is_refused(load: Load, text: str) -> None:
    """A list, an empty file, broken YAML: one sentence with the file's name."""
    message = refused(load, text=text)
    assert "config.yaml" in message
    assert "\n" not in message


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(ConfigError, match=r"none\.yaml' cannot be read: No such file"):
        yolo_settings.load(tmp_path / "none.yaml")


# --- one run


def test_config_survives_the_checkpoint(load: Load) -> None:
    """`to_dict` and `from_dict` are each other's inverse."""
    checked = load(BASE, "epochs=9", "lr0=1e-3", "kit.run=runs/a", "kit.session_hours=2")
    assert from_dict(checked.to_dict()) == checked


def test_config_of_another_version_is_read_without_what_is_unknown(load: Load) -> None:
    """A setting that came or went with a version does not make a checkpoint unreadable."""
    values = load(BASE, "epochs=9").to_dict()
    values.update(gone=3, kit={**values["kit"], "gone": 3})
    assert from_dict(values) == load(BASE, "epochs=9")


def test_difference_is_listed_with_both_values(load: Load) -> None:
    """A setting against another, and a setting against the default."""
    old, new = load(BASE, "batch=8", "lr0=0.1"), load(BASE, "batch=4")
    assert config.differences(old, new) == ["batch: 8 -> 4", "lr0: 0.1 -> 0.01"]
    assert config.differences(new, old) == ["batch: 4 -> 8", "lr0: 0.01 -> 0.1"]


@pytest.mark.parametrize(
    "word", ["epochs=9", "patience=9", "workers=1", "device=cpu", "plots=false", "kit.run=runs/b", "kit.max_lost_s=5"]
)
def test_settings_that_may_change_within_a_run_are_no_difference(load: Load, word: str) -> None:
    """The free ones of the contract, and all of the kit's own."""
    assert config.differences(load(BASE), load(BASE, word)) == []
    assert config.differences(load(BASE, word), load(BASE)) == []


def test_model_file_in_another_folder_is_no_difference(load: Load) -> None:
    """The next session may find it elsewhere; another file's name is another model."""
    old = load(BASE, "model=/kaggle/input/a/yolo.pt")
    assert config.differences(old, load(BASE, "model=yolo.pt")) == []
    assert config.differences(old, load(BASE, "model=/kaggle/input/a/yolo2.pt")) == [
        "model: '/kaggle/input/a/yolo.pt' -> '/kaggle/input/a/yolo2.pt'"
    ]


@pytest.mark.parametrize("name", ["2024-06-01", "2024-13-45"])
def test_date_names_a_run(load: Load, name: str) -> None:
    """YAML would make a date of it, or fail at one that is none."""
    assert load(BASE, f"kit.run={name}").kit.run == name


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data=/kaggle/input/set #1/data.yaml", "/kaggle/input/set #1/data.yaml"),
        ("data=set: v2", "set: v2"),
        ("data=[a] b.yaml", "[a] b.yaml"),
        ("data='quoted.yaml'", "quoted.yaml"),
        ("model=1e-3", "1e-3"),
        ("device=0", 0),
        ("device=0,1", "0,1"),
        ("device=[0, 1]", [0, 1]),
        ("cache=true", True),
        ("cache=disk", "disk"),
        ("pretrained=weights #2.pt", "weights #2.pt"),
        ("classes=0,1", [0, 1]),
        ("classes=[0, 2]", [0, 2]),
        ("freeze=(0,1)", [0, 1]),
        ("freeze=(0, '23.cv2')", [0, "23.cv2"]),
        ("scale=(0.5,1.5)", [0.5, 1.5]),
        ("auto_augment=null", None),
        ("auto_augment=None", None),
        ("classes=None", None),
        ("freeze=none", None),
        ("save_period=1e2", 100),
        ("save_period=100.0", 100),
    ],
)
def test_word_is_read_by_the_type_of_its_setting(load: Load, word: str, value: Any) -> None:
    """A text is not cut at what YAML takes for a comment, and lists may be written as stock's command line has them."""
    loaded = load(BASE, word).get(word.partition("=")[0])
    assert (loaded, type(loaded)) == (value, type(value))


@pytest.mark.parametrize("name", ["exp #1", "1_0", "3", "a: b", "2024-06-01", "true", "1e3"])
def test_name_of_a_run_is_taken_as_it_is_written(load: Load, name: str) -> None:
    """As a word, also through the words that the notebook hands on, and as a value."""
    assert load(BASE, f"kit.run={name}").kit.run == name
    assert load(BASE, *config.to_args({"kit.run": name})).kit.run == name


def test_list_in_a_file_may_be_written_as_a_tuple(load: Load) -> None:
    """`scale: (0.5, 1.5)` is a text to YAML."""
    assert load(BASE + "scale: (0.5, 1.5)\n").get("scale") == [0.5, 1.5]


def test_values_of_python_are_taken(tmp_path: Path) -> None:
    """Numpy's numbers and arrays, paths, tuples and ranges, handed over or written as words."""
    (tmp_path / "config.yaml").write_text(BASE)
    given = {
        "lr0": numpy.float64(0.5),
        "epochs": numpy.int64(7),
        "classes": numpy.array([0, 2]),
        "freeze": range(2),
        "scale": (0.5, 1.5),
        "data": Path("a.yaml"),
        "rect": numpy.bool_(True),
    }
    wanted = {"lr0": 0.5, "epochs": 7, "classes": [0, 2], "freeze": [0, 1], "scale": [0.5, 1.5], "data": "a.yaml"}
    for each in (given, config.to_args(given)):
        loaded = yolo_settings.load(tmp_path / "config.yaml", each)
        assert {name: loaded.get(name) for name in given} == {**wanted, "rect": True}


@pytest.mark.parametrize("name", ["model", "optimizer", "kit.run"])
@pytest.mark.parametrize("value", [3, ["SGD"], True])
def test_value_that_is_no_text_is_refused_where_one_is_wanted(tmp_path: Path, name: str, value: Any) -> None:
    """From Python and from a file, where a value has a type."""
    (tmp_path / "config.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=f"'{name}' must be"):
        yolo_settings.load(tmp_path / "config.yaml", {name: value})


@pytest.mark.parametrize(
    ("given", "taken"), [("yolo11n", "yolo11n.pt"), ("yolo11n-seg", "yolo11n-seg.pt"), ("mine", "mine")]
)
def test_model_of_ultralytics_may_be_named_without_its_suffix(load: Load, given: str, taken: str) -> None:
    """As stock Ultralytics completes it."""
    assert load(BASE, f"model={given}").get("model") == taken


def test_folder_with_the_name_of_a_model_stays(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies there is what was meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolo11n").mkdir()
    assert load(BASE, "model=yolo11n").get("model") == "yolo11n"


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("optimizer=Lion", "one of Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, SGD, MuSGD, auto"),
        ("seed=99999999999", "from 0 to 4294967295"),
        ("seed=-1", "from 0 to 4294967295"),
        ("epochs=0", "at least 1"),
        ("workers=-1", "0 or more"),
        ("nbs=0", "at least 1"),
        ("close_mosaic=-1", "0 or more"),
        ("batch=1.5", "a whole number, -1 to have it found, or a share of the GPU's memory below 1"),
        ("imgsz=[big]", "a whole number of pixels"),
        ("imgsz=[]", "a whole number of pixels"),
        ("cache=diks", "True, False, ram or disk"),
        ("data=[a.yaml,b.yaml]", "one data set"),
        ("data=a.yaml,b.yaml", "one data set"),
        ("data=(a, b)", "one data set"),
    ],
)
def test_value_out_of_range_is_refused_in_a_sentence(load: Load, word: str, wanted: str) -> None:
    """Before anything is started, and not by a traceback of Ultralytics or numpy."""
    assert f"must be {wanted}" in refused(load, word)


def test_data_set_that_is_there_may_have_any_name(load: Load, tmp_path: Path) -> None:
    """Also one that looks like a list of several."""
    (tmp_path / "[a, b]").mkdir()
    assert load(BASE, f"data={tmp_path}/[a, b]").get("data") == f"{tmp_path}/[a, b]"


def test_optimizer_may_be_written_in_small_letters(load: Load) -> None:
    """As Ultralytics takes it."""
    assert load(BASE, "optimizer=sgd").get("optimizer") == "sgd"


def test_every_setting_is_sorted_into_what_changes_the_bits_and_what_does_not() -> None:
    """A new version of Ultralytics may bring one, which somebody has to sort."""
    known = set(yolo_settings.defaults()) - set(yolo_settings.RESERVED)
    assert known == yolo_settings.MAY_CHANGE | yolo_settings.CHANGE_BITS
    assert set() == yolo_settings.MAY_CHANGE & yolo_settings.CHANGE_BITS


@pytest.mark.parametrize(
    "word", ["cache=ram", "save_period=1", "val=false", "line_width=2", "verbose=false", "format=onnx"]
)
def test_setting_that_changes_no_bit_is_no_difference(load: Load, word: str) -> None:
    """It is free from session to session."""
    assert config.differences(load(BASE), load(BASE, word)) == []


def test_pretrained_file_that_moved_is_no_difference(load: Load) -> None:
    """Its name is what counts."""
    old, new = load(BASE, "pretrained=/kaggle/input/a/w.pt"), load(BASE, "pretrained=/kaggle/input/b/w.pt")
    assert config.differences(old, new) == []


def test_file_of_a_stock_training_is_a_config(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """Ultralytics' args.yaml: what is the kit's business, or of another version, is left out and named."""
    values = {name: default for name, (default, _) in yolo_settings.defaults().items()}
    values |= {
        "model": "yolo11n.pt",
        "data": "b.yaml",
        "epochs": 7,
        "project": "p",
        "name": "train3",
        "save_dir": "p/train3",
    }
    loaded = load(yaml.safe_dump({**values, "gone": 1, "kit": {"run": "runs/a"}}))
    assert (loaded.get("epochs"), loaded.get("project"), loaded.kit.run) == (7, None, "runs/a")
    said = capsys.readouterr().err
    assert all(name in said for name in ("project", "name", "save_dir", "gone"))
    assert "project" in refused(load, text=BASE + "project: p\n"), "in a config of one's own it is an error still"


# --- the front doors


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Take note of what would be started."""
    calls = list[tuple[Any, ...]]()

    def run(path: Any, words: Any, resume: str, follow: Any) -> launch.Outcome:
        calls.append((list(words), resume))
        return launch.Outcome(0, {}, Path(), "")

    monkeypatch.setattr(launch, "run", run)
    return calls


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "a.pt", "lr0=0.005", "epochs=9"],
        ["lr0=0.005", "--resume", "a.pt", "epochs=9"],
        ["lr0=0.005", "epochs=9", "--resume", "a.pt"],
        ["lr0=0.005", "epochs=9", "--resume=a.pt"],
    ],
)
def test_options_and_settings_come_in_any_order(started: list[tuple[Any, ...]], words: list[str]) -> None:
    """The kit's own advice is to put `--resume FILE lr0=0.005` behind what was there."""
    assert cli.main(["train", *words]) == 0
    assert started == [(["lr0=0.005", "epochs=9"], "a.pt")]


@pytest.mark.parametrize("words", [["train", "a=1", "--resum", "x", "--none"], ["verify", "a.pt", "--none"]])
def test_unknown_option_is_refused_still(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the parser's own sentence."""
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "unrecognized arguments: --none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (True, "auto"),
        (numpy.True_, "auto"),
        (None, "auto"),
        (False, "never"),
        (Path("a.pt"), "a.pt"),
        ("never", "never"),
    ],
)
def test_resume_may_be_given_as_ultralytics_and_python_have_it(
    started: list[tuple[Any, ...]], given: Any, taken: str
) -> None:
    """True, False, None and a `Path`."""
    kit.train(resume=given)
    assert started == [([], taken)]


@pytest.mark.parametrize("given", ["x", 3, ["run"]])
def test_block_of_the_kit_that_is_none_is_refused(started: list[tuple[Any, ...]], given: Any) -> None:
    """In a sentence that shows how to write it."""
    with pytest.raises(ConfigError, match="by name, as kit="):
        kit.train(kit=given)
    assert started == []


@pytest.mark.parametrize("given", [{"epochs": 1}, 3, b"a.yaml"])
def test_config_that_is_no_path_is_refused(given: Any) -> None:
    """Settings in a dictionary go in by their names."""
    with pytest.raises(ConfigError, match="must be the path of a YAML file"):
        yolo_settings.load(given)


@pytest.mark.parametrize("form", [dict, config.to_args])
def test_value_that_no_text_can_hold_is_refused(tmp_path: Path, form: Callable[[Any], Any]) -> None:
    """In a sentence that names the setting."""
    endless: list[Any] = []
    endless.append(endless)
    (tmp_path / "config.yaml").write_text(BASE)
    for value in (endless, {(1, 2): 3}):
        with pytest.raises(ConfigError, match="The setting 'classes' cannot be written as text"):
            yolo_settings.load(tmp_path / "config.yaml", form({"classes": value}))
