"""The house rules: floors, no circles, one door to Ultralytics, a cheap import, public names, parsed settings."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kit
from kit import errors
from kit.kaggle import session
from kit.store.folder import RunFolder
from kit.yolo.settings import defaults, load

PACKAGE = session.REPOSITORY / "kit"
FLOORS = {
    "errors": 0,
    "text": 0,
    "kaggle": 1,
    "store": 2,
    "config": 3,
    "parallel": 3,
    "run": 4,
    "data": 4,
    "yolo": 5,
    "backup": 5,
    "process": 6,
    "dashboard": 6,
    "preflight": 6,
    "cli": 7,
    "__init__": 8,
    "__main__": 8,
    "bootstrap": 8,
}
HEAVY = ("torch", "ultralytics", "IPython", "ipywidgets", "numpy", "matplotlib", "PIL")
TYPES = {"int", "float", "bool", "str", "list", "tuple", "list[int]", "optional"}


def modules() -> dict[str, ast.Module]:
    """Return the kit's modules by dotted name: `kit` for `kit/__init__.py`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Yield every module that a module imports, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "import by the full name"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in known else str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield node.args[0].value if isinstance(node.args[0], ast.Constant) else "?"


def graph() -> dict[str, set[str]]:
    trees = modules()
    return {name: set(imports(tree, set(trees))) for name, tree in trees.items()}


def top(name: str) -> str:
    """Return the module's name on the floor plan."""
    return name.split(".")[1] if "." in name else "__init__"


def ours(name: str) -> bool:
    return name == "kit" or name.startswith("kit.")


def test_every_room_has_a_floor() -> None:
    """A new room chooses one, here and in the table of CONTRIBUTING.md."""
    assert {top(name) for name in modules()} == set(FLOORS)


def test_room_imports_only_from_rooms_on_lower_floors() -> None:
    """No import climbs or goes to another room of its floor, not even within a function."""
    climbs = [
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in sorted(others)
        if ours(other) and top(other) != top(name) and FLOORS[top(other)] >= FLOORS[top(name)]
    ]
    assert climbs == []


def test_imports_have_no_circles() -> None:
    """Taking away again and again what imports nothing that is left takes away everything."""
    left = {name: {other for other in others if ours(other)} for name, others in graph().items()}
    while free := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in free}
    assert left == {}


def test_only_one_room_knows_ultralytics() -> None:
    """A new version of Ultralytics is a matter of one room."""
    users = {top(name) for name, others in graph().items() for other in others if other.split(".")[0] == "ultralytics"}
    assert users == {"yolo"}


def test_only_upstream_knows_the_private_names_of_ultralytics() -> None:
    """A release that changes one is a matter of one module; and no mixin takes one of them by accident."""
    from kit.yolo import environment

    environment.prepare()
    from ultralytics.data.build import InfiniteDataLoader

    from kit.yolo.mosaic import LazyMosaic
    from kit.yolo.samples import ClassifiedDataset, LabelledDataset
    from kit.yolo.tasks import STOCK

    private: set[str] = set()
    bases = [*STOCK.values(), *LabelledDataset.__mro__, *ClassifiedDataset.__mro__, InfiniteDataLoader, LazyMosaic]
    for base in {
        base for kind in bases for base in kind.__mro__ if base.__module__.startswith(("ultralytics", "torch"))
    }:
        written = re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(base))
        private |= {name for name in (*vars(base), *written) if re.match("_[a-z]", name)}
    assert "_do_train" in private
    used = [
        f"{module}:{node.lineno} {name}"
        for module, tree in modules().items()
        if module.startswith("kit.yolo.") and module != "kit.yolo.upstream"
        for node in ast.walk(tree)
        for name in names(node)
        if name in private or (isinstance(node, ast.ImportFrom) and name.startswith("_"))
    ]
    assert used == []


def names(node: ast.AST) -> list[str]:
    """Return the names that a node uses as an attribute, defines, or imports from Ultralytics."""
    if isinstance(node, ast.ImportFrom):
        return [alias.name for alias in node.names] if str(node.module).startswith("ultralytics") else []
    return [getattr(node, field) for field in ("attr", "name") if isinstance(getattr(node, field, None), str)]


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the texts of a module that are no docstrings."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node


def test_names_of_a_runs_files_are_written_in_one_module() -> None:
    """`RunFolder` has them; a name that is no path, as of a command or of a column of the report, is no file's."""
    paths = [path for path in vars(RunFolder(Path("run"))).values() if path != Path("run")]
    files = {path.name for path in paths if path.suffix or path.name == ".lock"}
    folders = {path.name for path in paths} - files
    typed = []
    for name, tree in modules().items():
        joined = [node.right for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
        for node in texts(tree) if name != "kit.store.folder" else ():
            parts = set(str(node.value).split("/"))
            if parts & files or (parts & folders and (len(parts) > 1 or node in joined)):
                typed.append(f"{name}:{node.lineno}: {node.value}")
    assert typed == []


WRITERS = {  # the modules outside of the store that write by themselves, and why
    "kit.kaggle.bootstrap": "a temporary folder for pip; nothing is installed yet",
    "kit.kaggle.notebook": "the notebook itself, and in its cell the clone, before there is a kit",
    "kit.kaggle.session": "makes scratch, below the store",
    "kit.process.children": "the log takes what a process prints as it comes",
    "kit.process.worker": "the same for the other processes of a run",
    "kit.data.images": "a cache in scratch, mapped into memory and written in place",
    "kit.data.shapes": "drawn images and their labels, in scratch",
    "kit.dashboard.downloads": "removes its own folder where it is empty",
    "kit.yolo.environment": "Ultralytics' home in scratch",
    "kit.yolo.loop": "removes the empty folder that Ultralytics made",
    "kit.yolo.samples": "the folder of the label caches, in scratch",
    "kit.yolo.train": "fonts for Ultralytics, in its own folder",
}
PATH_CALLS = {"mkdir", "write_text", "write_bytes", "unlink", "rmdir", "rename", "touch", "symlink_to", "hardlink_to"}
OS_CALLS = {"os.link", "os.rename", "os.replace", "os.remove", "os.makedirs", "os.truncate", "os.symlink"}
OS_CALLS |= {f"shutil.{name}" for name in ("rmtree", "move", "copy", "copy2", "copyfile", "copytree")}


def writes(call: ast.Call) -> bool:
    """Tell whether a call opens a file for writing, or makes, renames or removes one."""
    name = ast.unparse(call.func)
    if name in ("open", "io.open", "os.fdopen"):
        mode = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
        fresh = call.args and not ast.unparse(call.args[0]).startswith("os.dup")  # a second name of an open file
        return bool(fresh and mode and set(ast.unparse(mode[0])) & set("wax+"))
    if name == "os.open":
        return bool({"O_CREAT", "O_RDWR", "O_TRUNC"} & set(re.findall(r"O_\w+", ast.unparse(call))))
    owner, _, method = name.rpartition(".")
    if owner.rpartition(".")[2] in ("disk", "DISK"):
        return False  # by the store
    one_word = method == "replace" and len(call.args) == 1  # of a path; that of a text takes two
    return name in OS_CALLS or (bool(owner) and (method in PATH_CALLS or one_word))


def test_only_the_store_writes_files() -> None:
    """Every other module goes through it, or is on the list with a reason."""
    calls = {
        name: [call.lineno for call in ast.walk(tree) if isinstance(call, ast.Call) and writes(call)]
        for name, tree in modules().items()
        if top(name) != "store"
    }
    assert {name: lines for name, lines in calls.items() if lines and name not in WRITERS} == {}
    assert {name for name in WRITERS if not calls.get(name)} == set(), "no longer needed on the list"


def test_bootstrap_and_errors_need_nothing_but_the_standard_library() -> None:
    """Nothing else may be there yet when they run."""
    names = ["kit.kaggle.bootstrap"]
    for name in names:
        names += [other for other in sorted(graph()[name]) if other.startswith("kit.") and other not in names]
        assert {other.split(".")[0] for other in graph()[name]} <= {*sys.stdlib_module_names, "kit"}
    assert "kit.errors" in names


def child(script: str, **environment: str) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    variables = {**kept, "PYTHONPATH": str(session.REPOSITORY), **environment}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "name",
    [
        "kit",
        "kit.cli",
        "kit.process.launch",
        "kit.dashboard",
        "kit.kaggle.bootstrap",
        "kit.kaggle.notebook",
        "kit.preflight.report",
    ],
)
def test_import_in_the_notebooks_kernel_stays_cheap(name: str) -> None:
    """The kernel never imports torch, and what draws the dashboard is imported when it is drawn."""
    loaded = child(f"import sys, {name}; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_import_does_nothing(tmp_path: Path) -> None:
    """No folder is made, no variable set, no logging set up, and nothing printed."""
    script = (
        "import os, logging; before = dict(os.environ); import kit, kit.cli, kit.process.launch, kit.dashboard; "
        "assert dict(os.environ) == before; assert not logging.getLogger().handlers"
    )
    folders = {f"KIT_{name}": str(tmp_path / name) for name in ("WORKING", "INPUT", "SCRATCH")}
    assert child(script, **folders) == ""
    assert list(tmp_path.iterdir()) == []


def test_public_names_are_pinned() -> None:
    """The front door is small; each name is there and has a docstring."""
    assert sorted(kit.__all__) == ["KitError", "doctor", "downloads", "progress", "results", "train", "verify"]
    assert all(getattr(kit, name).__doc__ for name in kit.__all__)


def test_no_public_name_is_that_of_a_room() -> None:
    """The import of a room would put it in the place of the function."""
    assert {top(name) for name in modules()} & set(kit.__all__) == set()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("KitError", 1),
        ("InputError", 2),
        ("ConfigError", 2),
        ("DataError", 2),
        ("ModelError", 2),
        ("CheckpointError", 2),
        ("MismatchError", 2),
        ("StorageError", 2),
        ("BusyError", 1),
        ("CrashError", 1),
        ("LostError", 76),
        ("DiedError", 77),
        ("FullError", 77),
        ("Stopped", 75),
    ],
)
def test_exit_codes_are_those_of_the_contract(name: str, code: int) -> None:
    """2 for bad input, 75 for stopped and resumable, 1 for anything else; the tree shows each exception."""
    assert getattr(errors, name).exit_code == code
    assert name in str(errors.__doc__)


def test_every_exception_is_in_the_tree() -> None:
    """And each is one of the kit's."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(value, errors.KitError) for value in classes)
    tree = re.findall(r"^\W*(\w+) ", str(errors.__doc__).partition("\n")[2].partition("\n\nA message")[0], re.MULTILINE)
    assert sorted(value.__name__ for value in classes) == sorted(tree)


def test_error_in_a_notebook_is_one_line() -> None:
    """IPython asks an exception for the text of its traceback."""
    lines = errors.ConfigError("There is no setting 'epoch'.")._render_traceback_()
    assert len(lines) == 1
    assert lines[0].endswith(" There is no setting 'epoch'.")


def test_every_setting_of_ultralytics_has_types_that_the_kit_knows() -> None:
    """They are read from the comments of its default.yaml, whose style may change with a version."""
    assert len(defaults()) > 80
    assert {name: types for name, (_, types) in defaults().items() if not types or not types <= TYPES} == {}


@pytest.mark.parametrize("name", list(defaults()))
def test_default_of_every_setting_is_accepted(tmp_path: Path, name: str) -> None:
    """Whoever writes Ultralytics' own default into a config changes nothing."""
    (tmp_path / "config.yaml").write_text("model: a.yaml\ndata: b.yaml\n")
    default = defaults()[name][0]
    if name not in ("model", "data"):
        assert load(tmp_path / "config.yaml", {name: default}).get(name) == default
