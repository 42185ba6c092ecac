"""Files of a revision through DVC, or of a folder; nothing is checked out."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import InputError

WORKSPACE = "workspace"


class AbsentError(InputError):
    """A revision or folder does not have a file."""


@dataclass(frozen=True)
class Revision:
    """Where a run's files are."""

    name: str  # as the user named it
    identity: str  # the commit, or the folder: two names may be of one
    read: Callable[[str], bytes]  # a file's content by its path from the project's root


def revision_of(name: str) -> Revision:
    """A commit, branch, tag or experiment of the repository that this is in, the workspace, or a
    folder: a name that begins with . / or ~.

    Raises:
        InputError: no repository, or no such revision in it.
    """
    if name[0] in "./~":
        folder = Path(name).expanduser()
        hint = "name a folder in which a run ended"
        return Revision(name, str(folder.resolve()), partial(_read, folder, str(folder), hint))
    root = repository_root()
    if name == WORKSPACE:
        return Revision(name, str(root), partial(_read, root, name, "'dvc repro' makes it"))
    from dvc.api import DVCFileSystem  # late: it takes a second

    top, commit = _commit(root, name)
    # Of a revision DVC's paths begin at git's root, which may lie above DVC's.
    files = DVCFileSystem(str(top), rev=commit, subrepos=True)
    folder = root.relative_to(top)
    return Revision(name, commit, partial(_read_committed, files, folder, name))


def _commit(root: Path, name: str) -> tuple[Path, str]:
    """Git's root and the commit of a revision.

    Raises:
        InputError: no git that this user may read, or no such revision in it.
    """
    from dvc.repo import Repo
    from dvc.scm import NoSCM, RevError, SCMError, resolve_rev
    from pygit2 import GitError

    try:
        with Repo(str(root)) as repository:
            if isinstance(repository.scm, NoSCM):
                raise SCMError("no_scm")
            return Path(repository.scm.root_dir).resolve(), resolve_rev(repository.scm, name)
    except RevError:
        raise InputError(
            f"there is no commit, branch, tag or experiment '{name}' here; 'dvc exp show' "
            "and 'git log' list them (in a shallow clone, 'git fetch' it first)"
        ) from None
    except SCMError:
        raise InputError(
            f"{root} is not in git, so it has no '{name}'; name folders (./one ../other), or "
            "begin a history: git init"
        ) from None
    except GitError as error:
        if not (owned := re.search("path '(.*)' is not owned", str(error))):
            raise InputError(f"git cannot read {root} ({error}); try 'git status' there") from None
        raise InputError(
            f"{owned[1]} belongs to another user, so git does not trust it; if you do: "
            f"git config --global --add safe.directory {shlex.quote(owned[1])}"
        ) from None


def repository_root() -> Path:
    """
    Raises:
        InputError: this is no DVC repository.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Path(Repo.find_root()).resolve()
    except NotDvcRepoError:
        raise InputError("this is no DVC repository; run it in the project's folder") from None


def _read(folder: Path, name: str, hint: str, path: str) -> bytes:
    try:
        return (folder / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise AbsentError(f"{name} has no {path}; {hint}") from None


def _read_committed(files: Any, folder: Path, revision: str, path: str) -> bytes:
    from dvc.exceptions import DvcException

    try:
        return bytes(files.read_bytes((folder / path).as_posix()))
    except (FileNotFoundError, DvcException):
        raise AbsentError(
            f"{revision} has no {path}; commit the reports and dvc.lock of a run there"
        ) from None
