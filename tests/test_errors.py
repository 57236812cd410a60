"""The exceptions: what a message says and what a hint says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import kit

ROOT = Path(kit.__file__).parent
VALUE = "…"  # stands for what is filled in
ENDS = (".", "?", VALUE)
VERBS = "attach|check|choose|correct|delete|detach|give|lower|put|raise|resume|run|set|start|switch|take|try|update|use"
VERBS += "|wait|write"
ADVICE = re.compile(rf"(^|[:;.,] )({VERBS})\b", re.IGNORECASE)


def text(node: ast.expr) -> str:
    """What a message says, as far as it stands in the source."""
    match node:
        case ast.Constant(value=str(words)):
            return words
        case ast.JoinedStr(values=parts):
            return "".join(map(text, parts))
        case ast.IfExp(body=first):
            return text(first)
    return VALUE


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(ROOT.rglob("*.py"))]


def kinds() -> set[str]:
    """The names of the kit's exceptions, in whatever room they are."""
    found = {"KitError"}
    classes = [node for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while more := {each.name for each in classes for base in each.bases if ast.unparse(base) in found} - found:
        found |= more
    return found


def made() -> Iterator[tuple[str, str, str]]:
    """The place of each exception that the kit makes, its message and its hint."""
    names = kinds()
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                words = [text(each) for each in node.args] + [text(each.value) for each in node.keywords]
                message, hint, *_ = [*words, "", ""]
                yield f"{path.relative_to(ROOT)}:{node.lineno}", message, hint


def test_message_says_what_happened_and_the_hint_what_to_do() -> None:
    """Both are sentences, so that `str(error)` is readable; no advice stands in the message."""
    found = list(made())
    assert len(found) > 80
    for place, message, hint in found:
        assert message.endswith(ENDS), (place, message)
        assert not ADVICE.search(message), (place, message)
        assert not hint or (hint.endswith(ENDS) and (hint[0].isupper() or hint[0] == VALUE)), (place, hint)
