"""Which code a stage depends on: one answer for dvc.yaml and for checkpoints."""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# Schemas only check params, whose values DVC tracks (`pipeline.config.schema`).
IGNORED = ("config",)


@cache
def stage_code(stage: str) -> tuple[str, ...]:
    """Return the stage's own module, and the packages of all modules that it imports.

    Imports are followed recursively. Whole packages keep the list short.
    """
    own = PACKAGE / "stages" / f"{stage}.py"
    seen, pending = set[Path](), [own]
    while pending:
        module = pending.pop()
        if module not in seen:
            seen.add(module)
            pending += module_imports(module)
    packages = sorted({path.parent for path in seen if path != own and path.parent != PACKAGE})
    return tuple(str(path.relative_to(PACKAGE.parent)) for path in (own, *packages))


def module_imports(module: Path) -> list[Path]:
    """Return the project's modules that this one imports anywhere, except the ignored ones."""
    names: list[str] = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    modules = []
    for name in names:
        root, *parts = name.split(".")
        if root == PACKAGE.name and parts and parts[0] not in IGNORED:
            path = PACKAGE.joinpath(*parts).with_suffix(".py")
            modules += [path] if path.is_file() else []
    return modules


def code_digest(stage: str) -> str:
    """Return a fingerprint of the code that the stage depends on."""
    digest = hashlib.sha256()
    for entry in stage_code(stage):
        path = PACKAGE.parent / entry
        for module in [path] if path.is_file() else sorted(path.glob("*.py")):
            digest.update(module.read_bytes())
    return digest.hexdigest()
