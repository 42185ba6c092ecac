"""Files of a revision through DVC, or of a folder; nothing is checked out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

WORKSPACE = "workspace"


class AbsentError(InputError):
    """A revision or folder does not have a file."""


@dataclass(frozen=True)
class Revision:
    """Where a run's files are."""

    name: str  # as the user named it
    identity: str  # the commit, or the folder: two names may be of one
    read: Callable[[str], bytes]  # a file's content by its path from the repository's root


def revision_of(name: str) -> Revision:
    """A commit, branch, tag or experiment of the repository that this is in, the workspace, or a
    folder: a name that begins with . / or ~.

    Raises:
        InputError: no repository, or no such revision in it.
    """
    if name[0] in "./~":
        folder = Path(name).expanduser()
        return Revision(name, str(folder.resolve()), _in_folder(folder))
    from dvc.api import DVCFileSystem  # late: it takes a second
    from dvc.repo import Repo
    from dvc.scm import NoSCM, RevError, resolve_rev

    root = repository_root()
    if name == WORKSPACE:
        return Revision(name, str(root), partial(_read, DVCFileSystem(str(root)), name))
    with Repo(str(root)) as repository:
        if isinstance(repository.scm, NoSCM):
            raise InputError(
                f"{root} is not in git, so it has no '{name}'; name folders: ./one ../other"
            )
        try:
            commit = resolve_rev(repository.scm, name)
        except RevError:
            raise InputError(
                f"there is no commit, branch, tag or experiment '{name}' here; 'dvc exp show' "
                "and 'git log' list them (in a shallow clone, 'git fetch' it first)"
            ) from None
    return Revision(name, commit, partial(_read, DVCFileSystem(str(root), rev=commit), name))


def repository_root() -> Path:
    """
    Raises:
        InputError: this is no DVC repository.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Path(Repo.find_root())
    except NotDvcRepoError:
        raise InputError("this is no DVC repository; run it in the project's folder") from None


def _in_folder(folder: Path) -> Callable[[str], bytes]:
    def read(path: str) -> bytes:
        try:
            return (folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise AbsentError(
                f"{folder} has no {path}; name a folder in which a run ended"
            ) from None

    return read


def _read(files: Any, revision: str, path: str) -> bytes:
    from dvc.exceptions import DvcException

    try:
        return bytes(files.read_bytes(path))
    except (FileNotFoundError, DvcException):
        raise AbsentError(
            f"{revision} has no {path}; commit the reports and dvc.lock of a run there"
        ) from None
