"""Which of the project's code a stage runs: one answer for dvc.yaml and for checkpoints."""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# Schemas only check params, whose values DVC tracks (`pipeline.config.schema`).
IGNORED = ("config",)


@cache
def code_of(stage: str) -> tuple[str, ...]:
    """The stage's own module and the packages of the modules that it imports, however deep.

    Whole packages, so that the list stays short; tests keep modules that no stage shares apart.
    """
    own = PACKAGE / "stages" / f"{stage}.py"
    seen, waiting = set[Path](), [own]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports_of(module)
    packages = sorted({path.parent for path in seen if path != own and path.parent != PACKAGE})
    return tuple(str(path.relative_to(PACKAGE.parent)) for path in (own, *packages))


def imports_of(module: Path) -> list[Path]:
    """The project's modules that this one imports, wherever in it, but for what is ignored."""
    names: list[str] = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    found = []
    for name in names:
        root, *parts = name.split(".")
        if root == PACKAGE.name and parts and parts[0] not in IGNORED:
            path = PACKAGE.joinpath(*parts).with_suffix(".py")
            found += [path] if path.is_file() else []
    return found


def code_digest(stage: str) -> str:
    """A fingerprint of that code."""
    digest = hashlib.sha256()
    for entry in code_of(stage):
        path = PACKAGE.parent / entry
        for module in [path] if path.is_file() else sorted(path.glob("*.py")):
            digest.update(module.read_bytes())
    return digest.hexdigest()
