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
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in names:
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


TAKEN_APART = re.compile(r"\bin str\(|str\(error\)\.(?!r?strip\(|replace\(|split\(\)|splitlines\()|\bre\.search\(")
OTHERS = {  # words that are not the kit's, of errors without a type or a code
    "backup/secrets.py": "names of variables, and no error's",
    "data/check.py": "why Ultralytics' scan has left an image out: decides on the advice alone",
    "kaggle/bootstrap.py": "what pip says",
    "kaggle/gpu.py": "torch before 2.8 and cuDNN: no kernels for this GPU",
    "kaggle/notebook.py": "what git says",
    "store/checkpoint.py": "torch: the class that it refuses, to be shown",
    "yolo/recovery.py": "torch before 2.8, cuBLAS, cuDNN and NCCL: memory is full, or the GPU has failed",
    "yolo/workers.py": "torch's loader: no batch has come in time",
}


def test_nothing_is_recognised_by_the_kits_own_words() -> None:
    """An error has a class, a kind and a hint; only other software's is told by its words, and where is known."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if TAKEN_APART.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(OTHERS)
