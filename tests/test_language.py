"""Code and docs are in plain technical English, and docstrings name real arguments."""

import ast
import re

import pytest

from tests.conftest import ROOT

# Turns of phrase that need a second reading, and what to write instead.
PHRASES = {
    r"go(?:es|ne|ing)? on with": "continue, resume",
    r"anew|afresh": "again, from scratch",
    r"(?<!here )\b(?:is|are|was) no (?!longer|more\b|better|worse|faster|slower)": "is not a",
    r"passed over|pass(?:es)? .{0,12} over": "skipped",
    r"learnt": "learned",
    r"at the most": "at most",
    r"(?<!here )\b(?:is|are) none\b": "is not one, is missing",
    r"said of every": "for every",
    r"so many (?!as)": "a number",
    r"[Yy]ardstick": "baseline",
    r"(?<![\"/.'])[Pp]icture": "image",
    r"\bdev split\b|\bon dev\b": "val",
    # Ours is not on PyPI, and another's of that name might be.
    r"pip install ['\"]?showtell(?!\S* @|-)": "the packages, or '.[extra]' in a checkout",
    r"tells? nothing|nothing of the": "has learned nothing, nothing about",
}
PATTERNS = (
    "pipeline/**/* tests/**/*.py benchmarks/*.py *.py docs/*.md README.md params.yaml dvc.yaml"
)
SUFFIXES = (".py", ".md", ".html", ".js", ".css", ".yaml")
# Old keys, these phrases, and other people's captions.
EXCEPT = ("renamed.py", "test_language.py", "hard_captions.py")
FILES = sorted(
    path
    for pattern in PATTERNS.split()
    for path in ROOT.glob(pattern)
    if path.suffix in SUFFIXES and path.name not in EXCEPT
)


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrases_that_need_a_second_reading_stay_out(phrase: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(phrase, line)
    ]
    assert not found, f"write {PHRASES[phrase]!r} instead:\n" + "\n".join(found)


def test_docstrings_name_arguments_that_exist() -> None:
    functions = 0
    for path in (path for path in FILES if path.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            _, heading, section = (ast.get_docstring(node) or "").partition("Args:\n")
            names = re.findall(r"^    (\w[\w, ]*):", section.split("\n\n")[0], re.MULTILINE)
            documented = {name for group in names for name in group.split(", ")}
            own = {
                argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)
            }
            assert documented <= own, f"{path}:{node.lineno}: {documented - own}"
            functions += bool(heading)
    assert functions > 50
