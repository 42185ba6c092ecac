"""A cache's files as processes on other machines find them, if they share the file system."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.extraction.row_files import RowFile
from pipeline.features.cache_file import Layout


@dataclass(frozen=True)
class SharedFiles:
    """Where some open `RowFile`s are; may be sent to another process."""

    files: tuple[tuple[Path, Layout, int], ...]
    secret: str  # the content of a file beside them: the same path may be another disk elsewhere

    @classmethod
    @contextmanager
    def of(cls, files: Sequence[RowFile]) -> Iterator[Self]:
        """Yield where these files are; while the block lasts, others can open them."""
        paths = [Path(os.fsdecode(file.file.name)).absolute() for file in files]
        secret = secrets.token_hex(16)
        places = zip(paths, files, strict=True)
        shared = cls(tuple((path, file.layout, file.begin) for path, file in places), secret)
        for folder in {path.parent for path in paths}:
            (folder / "secret").write_text(secret)
        try:
            yield shared
        finally:
            for folder in {path.parent for path in paths}:
                (folder / "secret").unlink(missing_ok=True)

    @contextmanager
    def opened(self) -> Iterator[list[RowFile]]:
        """Yield the files, opened to write; none if this machine does not have them.

        At the end what was written is on the disk, where other machines see it.
        """
        with ExitStack() as stack:
            files = []
            for path, layout, begin in self.files if self._are_here() else ():
                file = stack.enter_context(path.open("r+b", buffering=0))
                files.append(RowFile(file, layout, begin))
            yield files
            for opened in files:
                os.fsync(opened.file.fileno())

    def _are_here(self) -> bool:
        try:
            return all((p.parent / "secret").read_text() == self.secret for p, _, _ in self.files)
        except OSError:
            return False
