"""Write files atomically, read JSON, compute digests."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import ArtifactError, InputError


def named_path(text: str, key: str) -> Path:
    """Return the path of the file or folder that the param `key` names.

    Raises:
        InputError: it does not exist; the message has the absolute path.
    """
    path = Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser raises for unknown users
    if path.exists():
        return path
    if path.is_absolute():
        raise InputError(f"{key} names {text}, which does not exist; check the path")
    hint = "check the path"
    if in_experiment():
        hint = "--temp and queued experiments run in a copy of the repository; use an absolute path"
    raise InputError(f"{key} names {text}, but {path.absolute()} does not exist; {hint}")


def named_file(text: str, key: str) -> Path:
    """Return the path of the file that the param `key` names.

    Raises:
        InputError: it is not a file; the message has the absolute path.
    """
    path = named_path(text, key)
    if path.is_dir():
        raise InputError(f"{key} names {text}, which is a folder; name a file")
    return path


def in_experiment() -> bool:
    """Whether this runs in a temporary folder of a DVC experiment."""
    return ".dvc/tmp/exps" in Path.cwd().as_posix()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to, and move it to `path` once it is on the disk.

    A crash or an error leaves any file at `path` unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        replace_durably(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with atomic_write(target) as scratch:
        shutil.copyfile(source, scratch)


def replace_durably(source: Path, target: Path) -> None:
    """Replace a file by another, and put the new folder entry on the disk."""
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_digest(path: Path, algorithm: str = "md5") -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON that git can diff: indented, UTF-8, no NaN, keys in the order given."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def json_digest(content: Any) -> str:
    """Return a fingerprint of JSON's content in any layout, 16 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_checked_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with a digest of itself, for `read_checked_json`."""
    write_json(path, {**content, "digest": json_digest(content)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read what `write_checked_json` wrote.

    Raises:
        ArtifactError: the file is missing, not a JSON object, or not what was written.
    """
    content = parse_json(read_bytes(path), path)
    if not isinstance(content, dict) or "digest" not in content:
        raise ArtifactError(path, "was not written by this version")
    if content.pop("digest") != json_digest(content):
        raise ArtifactError(path, "is damaged: it is not what was written")
    return content


def parse_json(content: bytes, where: object) -> Any:
    """Parse JSON that a stage wrote; `where` is what messages call it.

    Raises:
        ArtifactError: it is not JSON.
    """
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, huge numbers, deep nesting
        raise ArtifactError(where, f"is not valid JSON ({error})") from None


def read_bytes(path: Path) -> bytes:
    """Read a file that a stage wrote.

    Raises:
        ArtifactError: the file is missing.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(path, "does not exist") from None
