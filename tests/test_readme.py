"""What the README, the pages in docs/ and the front door promise is there."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from pathlib import Path

import pytest

import kit
from kit import cli, config
from kit.kaggle import bootstrap, notebook, session
from kit.yolo.settings import load, schema

PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (session.REPOSITORY / "README.md", *sorted((session.REPOSITORY / "docs").glob("*.md")))
}
README, *DOCS = PAGES.values()
TEXT = "\n".join(PAGES.values())
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
IMAGE = {  # what Kaggle's image has of what ultralytics needs
    *("httpx", "matplotlib", "numpy", "nvidia-ml-py", "opencv-python", "pillow", "polars", "psutil", "pyyaml"),
    *("requests", "torch", "torchvision"),
}
COMMANDS = [line.partition("#")[0].strip() for line in BLOCKS.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python -m kit")])
def test_command_in_the_readme_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words parse, and its settings exist and have values of the right type."""
    options = cli._parser().parse_args(shlex.split(command)[3:])
    for name, value in map(config.parse_override, getattr(options, "settings", [])):
        config.check(schema(), name, value)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make")])
def test_make_target_in_the_readme_exists(command: str) -> None:
    """`make TARGET`."""
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:", (session.REPOSITORY / "Makefile").read_text(), re.MULTILINE)


def test_cell_in_the_readme_is_the_notebooks() -> None:
    """Whoever pastes it gets what the notebook has."""
    assert f"```python\n{notebook.BOOTSTRAP}\n```" in TEXT


def test_wheels_in_the_readme_are_what_the_image_lacks() -> None:
    """Those of requirements.txt and of what they need; a new version of ultralytics may need another one."""
    line = re.search(r"^pip download .*\\\n(.*)$", TEXT, re.MULTILINE)
    assert line
    named = shlex.split(line[1])
    assert [word for word in bootstrap.requirements() if word.startswith("ultralytics")] == named[:1]
    lacking, new = {"isal"}, ["ultralytics"]
    while new:
        lacking.add(name := new.pop())
        needed = [text for text in importlib.metadata.requires(name) or () if "extra ==" not in text]
        new += {bootstrap._name(text) for text in needed} - IMAGE - lacking
    assert {bootstrap._name(word) for word in named} == lacking


def test_every_variable_is_in_the_table_of_the_settings() -> None:
    """And the table has no other."""
    code = "".join(path.read_text(encoding="utf-8") for path in (session.REPOSITORY / "kit").rglob("*.py"))
    page = (session.REPOSITORY / "docs/settings.md").read_text(encoding="utf-8")
    listed = [name for row in re.findall(r"^\| (`KIT_[^|]*)\|", page, re.MULTILINE) for name in row.split(",")]
    assert {name.strip(" `") for name in listed} == set(re.findall(r"\bKIT_[A-Z_]+", code))


def test_file_in_the_readme_exists() -> None:
    """The tree names files that are there."""
    tree = re.search(r"```\n(notebooks/.*?)```", README, re.DOTALL)
    assert tree
    folder = ""
    for line in tree[1].splitlines():
        names = re.split(r"\s{2,}", line.strip())[0]
        folder = folder if line.startswith("  ") else ""
        for name in names.split(", "):
            assert (session.REPOSITORY / folder / name).exists(), name
        if names.endswith("/") and not line.startswith("  "):
            folder = names


def test_front_door_is_small_and_pinned() -> None:
    """The public names."""
    assert kit.__all__ == ["KitError", "doctor", "downloads", "progress", "results", "train", "verify"]
    assert all(getattr(kit, name).__doc__ for name in kit.__all__)


@pytest.mark.parametrize("name", ["quickstart.yaml", "kaggle_config.yaml"])
def test_shipped_config_is_valid(name: str) -> None:
    """Every setting of the configs exists; Kaggle's says 100 epochs."""
    loaded = load(session.REPOSITORY / "configs" / name)
    assert loaded.get("epochs") == {"quickstart.yaml": 10, "kaggle_config.yaml": 100}[name]


def test_no_path_of_a_machine_is_in_the_notebook_or_the_readme() -> None:
    """They speak of Kaggle's folders only."""
    paths = re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users)/\S*", TEXT)
    assert paths == []


def anchors(text: str) -> list[str]:
    """Return the names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """Between the pages; addresses elsewhere are not asked."""
    for target in re.findall(r"\]\(([^)\s]+)\)|src(?:set)?=\"([^\"]+)\"", PAGES[page]):
        name, _, heading = "".join(target).partition("#")
        if ":" not in name:
            file = page.parent / name if name else page
            assert file.exists(), target
            assert not heading or heading in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", [path for path in PAGES if path.parent.name == "docs"], ids=lambda path: path.name)
def test_page_is_linked_from_the_readme_and_lists_its_sections(page: Path) -> None:
    """A page of several sections begins with a table of contents."""
    assert f"](docs/{page.name})" in README
    text = PAGES[page]
    sections = re.findall(r"^## (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    assert re.findall(r"^- \[(.+)\]\(#", text, re.MULTILINE) == sections


def test_readme_is_a_page_that_is_read() -> None:
    """The rest is in docs/."""
    assert README.count("\n") <= 150
