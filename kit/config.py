"""Settings: defaults < YAML file < `key=value`, all of it checked before anything is started.

A config is a framework's own training settings by their own names and a block `kit:` with the kit's. What settings the
framework has is handed in as a `Schema`; Ultralytics' is in `kit.yolo.settings`.
"""

from __future__ import annotations

import ast
import datetime
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from kit.errors import ConfigError
from kit.kaggle import session
from kit.store.folder import RunFolder

RENAMED = {"kit.ranks": "kit.slices"}  # old name -> new
TEXTS = {"kit.run": frozenset({"str"}), "kit.backup": frozenset({"str", "optional"})}
NONE = ("", "null", "none", "~")  # ways to write it on the command line


@dataclass(frozen=True)
class KitSettings:
    """The block `kit:` of a config."""

    run: str = "runs/train"
    max_lost_s: float = 30.0
    max_cost_percent: float = 1.0
    session_hours: float | str = "auto"
    backup: str | None = None
    backup_required: bool = True
    remind_epochs: int = 25
    receipt: int = 2
    processes: int | str = "auto"
    slices: int | str = "auto"
    restarts: int = 2


@dataclass(frozen=True)
class Schema:
    """The training settings that a framework has.

    Attributes:
        defaults: Name -> (default, types): `int`, `float`, `bool`, `str`, `list`, `tuple`, `list[int]`, `optional`.
        reserved: Names that are the kit's own business -> the way to the same end, as a sentence.
        may_change: Names that may change from session to session.
        classifies: Tells whether a config is one of a classification; None where that cannot be known here.
        limits: Name -> (whether a value of the right type is good, what it must be).
    """

    defaults: Mapping[str, tuple[Any, frozenset[str]]]
    reserved: Mapping[str, str]
    may_change: frozenset[str]
    classifies: Callable[[Config], bool | None]
    limits: Mapping[str, tuple[Callable[[Any], bool], str]] = field(default_factory=dict)

    def types(self, name: str) -> frozenset[str]:
        """Return the types of a setting, also of the kit's texts; none where they are not known."""
        return TEXTS.get(name) or self.defaults.get(name, (None, frozenset[str]()))[1]


@dataclass(frozen=True)
class Config:
    """One checked set of settings.

    Attributes:
        schema: Of the framework's settings.
        train: The framework's settings that differ from their defaults.
        kit: The kit's own settings.
    """

    schema: Schema = field(repr=False, compare=False)
    train: dict[str, Any] = field(default_factory=dict)
    kit: KitSettings = field(default_factory=KitSettings)

    @property
    def run_folder(self) -> Path:
        """The run's folder, below the working folder."""
        return session.working() / self.kit.run

    @property
    def files(self) -> RunFolder:
        """The files in the run's folder."""
        return RunFolder(self.run_folder)

    @property
    def classifies(self) -> bool | None:
        """Whether the run is a classification; None where that cannot be known here."""
        return self.schema.classifies(self)

    @property
    def restored_folder(self) -> Path | None:
        """Where the launcher puts what it fetched from the backup of this run; None where there is none."""
        if self.kit.backup is None:
            return None
        name = hashlib.sha256(f"{self.kit.backup} {self.run_folder}".encode()).hexdigest()[:16]
        return session.scratch() / "backups" / name

    def get(self, name: str) -> Any:
        """Return a training setting or its default."""
        return self.train.get(name, self.schema.defaults[name][0])

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain values, in the form of its YAML file."""
        return {**self.train, "kit": asdict(self.kit)}


def load(schema: Schema, path: str | Path | None = None, settings: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read and check a config.

    Args:
        schema: Of the framework's settings.
        path: A YAML file; the default is `configs/kaggle_config.yaml` on Kaggle, else `configs/quickstart.yaml`.
        settings: What to change in it, as `key=value` words or as a mapping; the kit's keys are dotted (`kit.run`).

    Raises:
        ConfigError: Something is missing, unknown, refused or of the wrong type.
    """
    if path is None:
        installed = Path(__file__).with_name("configs")
        folder = installed if installed.is_dir() else session.REPOSITORY / "configs"
        path = folder / ("kaggle_config.yaml" if session.on_kaggle() else "quickstart.yaml")
    if not isinstance(path, (str, Path)):
        raise ConfigError(
            f"The config must be the path of a YAML file but got {path!r}.", "Give settings by their names."
        )
    merged = _foreign(schema, path, _read(Path(path)))
    block = merged.pop("kit", None) or {}
    if not isinstance(block, dict):
        raise ConfigError(f"'kit' in '{path}' must be a block of settings but is {block!r}.")
    merged.update(_renamed({f"kit.{key}": value for key, value in block.items()}))
    if isinstance(settings, Mapping):
        given = {name: json.loads(_as_json(name, value)) for name, value in settings.items()}
    else:
        given = dict(parse_override(word, schema) for word in settings)
    merged.update(_renamed(given))
    merged = {name: _read_value(value, schema.types(name)) for name, value in merged.items()}
    for name, value in merged.items():
        check(schema, name, value)
    own = {name.removeprefix("kit."): value for name, value in merged.items() if name.startswith("kit.")}
    train = {name: value for name, value in merged.items() if not name.startswith("kit.")}
    config = Config(schema, {k: v for k, v in train.items() if v != schema.defaults[k][0]}, KitSettings(**own))
    for name in ("model", "data"):
        if not config.get(name):
            raise ConfigError(f"The setting '{name}' is missing.", f"Give {name}=... or put it into '{path}'.")
    return config


def from_dict(schema: Schema, values: Mapping[str, Any]) -> Config:
    """Rebuild the config that `Config.to_dict` wrote; settings that this version does not know are left out."""
    known = {f.name for f in fields(KitSettings)}
    block = _renamed({f"kit.{name}": value for name, value in dict(values.get("kit") or {}).items()}, hint=False)
    own = {name: value for key, value in block.items() if (name := key.removeprefix("kit.")) in known}
    return Config(schema, {k: v for k, v in values.items() if k in schema.defaults}, KitSettings(**own))


def _renamed(settings: Mapping[str, Any], hint: bool = True) -> dict[str, Any]:
    """Return settings by their names of today; an earlier name is taken too."""
    for old in RENAMED.keys() & settings.keys() if hint else ():
        print(f"The setting '{old}' is called '{RENAMED[old]}' now; the old name still works.", file=sys.stderr)
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def differences(old: Config, new: Config) -> list[str]:
    """List the settings, as `name: old -> new`, that differ and may not change within a run; the block `kit:` may."""
    names = sorted((set(old.train) | set(new.train)) - new.schema.may_change)
    pairs = [(name, old.get(name), new.get(name)) for name in names]
    return [f"{name}: {a!r} -> {b!r}" for name, a, b in pairs if _comparable(name, a) != _comparable(name, b)]


def _comparable(name: str, value: Any) -> Any:
    """A model file may lie in another folder in the next session."""
    return Path(value).name if name in ("model", "pretrained") and isinstance(value, str) else value


def parse_override(word: str, schema: Schema | None = None) -> tuple[str, Any]:
    """Split `key=value` and read the value as YAML does, and `1e-3` as a number; where a text is wanted, take the text.

    Raises:
        ConfigError: There is no `=`.
    """
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise ConfigError(f"'{word}' is not a setting.", "Write key=value, for example epochs=50.")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none; a thousand brackets
        value = text
    name, types = name.strip(), schema.types(name.strip()) if schema else frozenset[str]()
    value = text if isinstance(value, datetime.date) else _read_value(value, types)
    if text.strip().lower() in NONE and types & {"str", "optional"}:
        return name, None
    if "str" not in types or text[:1] in ("'", '"'):
        return name, value
    return name, value if value is not None and _fits(value, types - {"str"}) else text


def to_args(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as the `key=value` words that `parse_override` reads."""
    return [f"{name}={_as_json(name, value)}" for name, value in settings.items()]


def _as_json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=_json)
    except (TypeError, ValueError) as error:  # keys that are no text; a list that holds itself
        raise ConfigError(f"The setting '{name}' cannot be written as text: {error}.") from error


def _json(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy's and torch's
        return value.tolist()
    return list(value) if isinstance(value, (set, range)) else str(value)


def _foreign(schema: Schema, path: str | Path, values: dict[str, Any]) -> dict[str, Any]:
    """Take the file that the framework itself wrote of a training, with all of its settings, but for the kit's own."""
    if not schema.defaults or len(schema.defaults.keys() & values.keys()) < 0.9 * len(schema.defaults):
        return values
    defaults = {name: default for name, (default, _) in schema.defaults.items()}
    left = [
        name
        for name, value in values.items()
        if name != "kit" and (name not in defaults or (name in schema.reserved and value != defaults[name]))
    ]
    if left:
        print(
            f"Of '{path}', not taken, because it is the kit's business or unknown: {', '.join(left)}", file=sys.stderr
        )
    return {name: value for name, value in values.items() if name not in left}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The config '{path}' cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8; a date that is none; too many brackets
        raise ConfigError(f"The config '{path}' is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The config '{path}' must hold `name: value` lines but holds {type(values).__name__}.")
    return {str(name): value for name, value in values.items()}


def _read_value(value: Any, types: frozenset[str]) -> Any:
    """Read what YAML 1.1 takes for a text: `1e-3`; and `0,1` and `(0, 1)` where a list is wanted and no text.

    `1e2` and `100.0` are whole numbers where one is wanted, as in Ultralytics.
    """
    number = isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value)
    if number and types not in TEXTS.values():
        value = float(value)
    if isinstance(value, float) and value.is_integer() and "int" in types and "float" not in types:
        return int(value)
    if not isinstance(value, str) or types in TEXTS.values():
        return value
    if types & {"list", "tuple", "list[int]"} and "str" not in types:
        try:
            items = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        return list(items) if isinstance(items, (list, tuple)) else value
    return value


def check(schema: Schema, name: str, value: Any) -> None:
    """Check one setting.

    Raises:
        ConfigError: It is unknown, refused or of the wrong type.
    """
    own = {f"kit.{f.name}" for f in fields(KitSettings)}
    if name in schema.reserved and value != schema.defaults.get(name, (None,))[0]:
        raise ConfigError(f"The setting '{name}' (given: {value!r}) is not available here.", schema.reserved[name])
    if name in own:
        _check_own(name.removeprefix("kit."), value)
        return
    if name not in schema.defaults:
        close = difflib.get_close_matches(name, [*schema.defaults, *own], n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'?" if close else "See configs/kaggle_config.yaml for the names."
        raise ConfigError(f"There is no setting '{name}' (given: {value!r}).", hint)
    default, types = schema.defaults[name]
    if not (value is default is None) and types and not _fits(value, types):
        wanted = " or ".join(sorted(t for t in types if t in _PYTHON))
        raise ConfigError(f"The setting '{name}' must be {wanted} but got {value!r} ({type(value).__name__}).")
    good, words = schema.limits.get(name, (None, ""))
    if good and value != default and not good(value):
        raise ConfigError(f"The setting '{name}' must be {words} but got {value!r}.")


_PYTHON: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "tuple": (tuple, list),
    "list[int]": list,
}


def _fits(value: Any, types: frozenset[str]) -> bool:
    if value is None:
        return "optional" in types
    if isinstance(value, bool):
        return "bool" in types
    if isinstance(value, int) and types & {"float", "int"}:
        return "float" in types or "int" in types
    if isinstance(value, list) and "list[int]" in types and not all(isinstance(each, int) for each in value):
        return False
    return any(isinstance(value, _PYTHON[t]) and t != "bool" for t in types if t in _PYTHON)


def _check_own(name: str, value: Any) -> None:
    positive = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    if name == "run":
        if (
            not isinstance(value, str)
            or not Path(value).parts
            or Path(value).is_absolute()
            or ".." in Path(value).parts
        ):
            raise ConfigError(f"The setting 'kit.run' must be a folder below the working folder but got {value!r}.")
    elif name == "backup":
        _check_address(value)
    elif name == "backup_required":
        if not isinstance(value, bool):
            raise ConfigError(f"The setting 'kit.backup_required' must be True or False but got {value!r}.")
    elif name in ("remind_epochs", "receipt", "restarts"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            what = {"remind_epochs": "epochs", "receipt": "steps", "restarts": "starts"}[name]
            raise ConfigError(f"The setting 'kit.{name}' must be a number of {what}, 0 for none, but got {value!r}.")
    elif name in ("processes", "slices"):
        if value != "auto" and not (positive and isinstance(value, int)):
            raise ConfigError(f"The setting 'kit.{name}' must be 'auto' or 1, 2, 3, ... but got {value!r}.")
    elif not positive and not (name == "session_hours" and value == "auto"):
        wanted = "'auto' or a positive number" if name == "session_hours" else "a positive number"
        raise ConfigError(f"The setting 'kit.{name}' must be {wanted} but got {value!r}.")


_TOKEN = re.compile(r"(hf_|KGAT_|AKIA|ghp_)\w{16,}")  # how Hugging Face's, Kaggle's, Amazon's and GitHub's begin
_ADDRESS = re.compile(
    r"kaggle://[\w-]+/[\w-]+|hf://[\w.-]+/[\w.-][\w./-]*|file:///.+|(?!kaggle:|hf:|file:)[a-z][a-z0-9+-]*://.+"
)


def _check_address(value: Any) -> None:
    """Refuse an address that holds a secret, without printing it: settings are saved in checkpoints and shown."""
    try:
        secret = isinstance(value, str) and (
            urlsplit(value).password is not None or "?" in value or _TOKEN.search(value) is not None
        )
    except ValueError:
        secret = True  # nothing that urlsplit cannot read is an address, and it may hold anything
    if secret:
        raise ConfigError(
            "The setting 'kit.backup' seems to hold a password, a key or a token.",
            "Give the address alone, and keep the rest in Kaggle's secrets or the environment (docs/backup.md).",
        )
    if value is not None and not (isinstance(value, str) and _ADDRESS.fullmatch(value)):
        raise ConfigError(
            "The setting 'kit.backup' must be an address, kaggle://owner/slug, hf://owner/repo, s3://bucket/path or "
            f"file:///folder for example, or empty for none, but got {value!r}."
        )
