"""Writing files whole or not at all, and telling them apart."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to, moved to `path` once it is whole and on the disk.

    A crash or an error leaves whatever was at `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def file_digest(path: Path, algorithm: str = "md5") -> str:
    """Hexadecimal digest of a file's bytes."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON that git can diff: indented, UTF-8, no NaN, keys in the order given."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, made_by: str) -> Any:
    """Read JSON, naming the stage that makes it where it cannot be read.

    Raises:
        InputError: the file is absent or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the stage '{made_by}' makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{path} is no valid JSON ({error}); run the stage '{made_by}' again"
        ) from None
