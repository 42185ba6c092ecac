"""Writing files whole or not at all, and telling them apart."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import ArtifactError, InputError


def named_file(text: str, key: str) -> Path:
    """The file that the param `key` names.

    Raises:
        InputError: there is none; the line says where it was looked for.
    """
    path = Path(os.path.expanduser(text))  # noqa: PTH111  Path's own raises of unknown users
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"{key} names {text}, which is a folder; name a file")
    if path.is_absolute():
        raise InputError(f"{key} names {text}, which is not a file; check the path")
    why = "check the path"
    if in_experiment():
        why = "experiments of --temp and the queue run in a copy of the repository, so give a path "
        why += "that begins with /"
    raise InputError(f"{key} names {text}, but {path.absolute()} is not a file; {why}")


def in_experiment() -> bool:
    """Whether this runs in one of the folders that DVC makes for experiments and removes again."""
    return ".dvc/tmp/exps" in Path.cwd().as_posix()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path to write to, moved to `path` once it is whole and on the disk.

    A crash or an error leaves whatever was at `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        replace_durably(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with atomic_write(target) as scratch:
        shutil.copyfile(source, scratch)


def replace_durably(source: Path, target: Path) -> None:
    """Put a file in another's place, and the new name on the disk as well."""
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_digest(path: Path, algorithm: str = "md5") -> str:
    """Hexadecimal digest of a file's bytes."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON that git can diff: indented, UTF-8, no NaN, keys in the order given."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def json_digest(content: Any) -> str:
    """A fingerprint of JSON's content, however it is laid out; 16 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_checked_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with a digest of itself, by which `read_checked_json` knows it."""
    write_json(path, {**content, "digest": json_digest(content)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: the file is absent, no JSON object, or not what was written.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "digest" not in content:
        raise ArtifactError(path, "was not written by this version")
    if content.pop("digest") != json_digest(content):
        raise ArtifactError(path, "is damaged: it is not what was written")
    return content


def read_json(path: Path) -> Any:
    """Read JSON that a stage wrote.

    Raises:
        ArtifactError: the file is missing or not JSON.
    """
    return parse_json(read_bytes(path), path)


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
