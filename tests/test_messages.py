"""The page of messages: what it quotes is what the kit says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import kit

ROOT = Path(kit.__file__).parent
PAGE = ROOT.parent / "docs/messages.md"
ROWS = re.findall(r"^\| (`.+`) \| .+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
PART = 7  # letters of a message that is put together from two
VALUES = re.compile(r"…|'[^']*'|\b\d+\b|\bSIG[A-Z]+\b|\bsm_\d+\b|/[\w/.-]+")  # what the quotes fill in, as examples


def literals(path: Path) -> list[str]:
    """The texts of a module: a string as Python joins it, cut where values are filled in."""
    found: list[str] = []

    def add(node: ast.AST) -> None:
        match node:
            case ast.JoinedStr(values=parts):
                for part in parts:
                    add(part)
            case ast.Constant(value=str(text)):
                found.append(text)
            case _:
                for child in ast.iter_child_nodes(node):
                    add(child)

    add(ast.parse(path.read_text(encoding="utf-8")))
    return found


SAID = {path.relative_to(ROOT): literals(path) for path in sorted(ROOT.rglob("*.py"))}


def fragments(quote: str) -> list[str]:
    """The words of a quoted message between its values."""
    text = quote.removeprefix("WARNING: ")
    return [words for part in VALUES.split(text) if len(words := part.strip(" ():.;,")) > 2]


def places(words: str) -> set[Path]:
    """The modules that say these words, at one place or, put together from two, before and after a blank."""
    found = {path for path, texts in SAID.items() if any(words in text for text in texts)}
    for blank in re.finditer(" ", words):
        before, after = words[: blank.start()], words[blank.end() :]
        if not found and min(len(before), len(after)) >= PART:
            ends = [
                {path for path, texts in SAID.items() if any(end in text for text in texts)} for end in (before, after)
            ]
            found |= ends[0] | ends[1] if all(ends) else set()
    return found


@pytest.mark.parametrize("row", ROWS)
def test_quoted_message_is_said_somewhere(row: str) -> None:
    """Word for word, but for the values: who changes a message has to change the page."""
    for quote in re.findall(r"`([^`]+)`", row):
        words = fragments(quote)
        assert sum(map(len, words)) >= 11, "too little to find it by"
        for each in words:
            assert places(each), f"nothing in kit/ says «{each}»"


def test_words_of_a_message_that_is_not_there_are_not_found() -> None:
    """The check above can fail: values are left out, and the rest is looked for."""
    assert fragments("WARNING: '…' has 3 MB free, and 104 MB are needed …") == ["has", "MB free, and", "MB are needed"]
    assert places("MB free, and") == {Path("store/disk.py")}
    assert not places("MB free and")
    assert len(ROWS) > 40
