"""Read files of a git revision through DVC, or of a folder, without a checkout."""

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
    """A revision or folder lacks a file."""


@dataclass(frozen=True)
class Revision:
    """The place of a run's files."""

    name: str  # as the user named it
    identity: str  # the commit, or the folder: two names can have the same
    read: Callable[[str], bytes]  # returns a file, by its path from the project's root


def resolve_revision(name: str) -> Revision:
    """Find a commit, branch, tag or experiment of this repository, the workspace, or a folder: a
    name that begins with . / or ~.

    Raises:
        InputError: this is not a repository, or it has no such revision.
    """
    if name[0] in "./~":
        folder = Path(name).expanduser()
        hint = "name the folder of a finished run"
        return Revision(name, str(folder.resolve()), partial(_read, folder, str(folder), hint))
    root = repository_root()
    if name == WORKSPACE:
        return Revision(name, str(root), partial(_read, root, name, "run 'dvc repro'"))
    from dvc.api import DVCFileSystem  # imported late: it takes a second

    top, commit = _commit(root, name)
    # In a revision, DVC's paths begin at git's root, which can be above DVC's.
    files = DVCFileSystem(str(top), rev=commit, subrepos=True)
    folder = root.relative_to(top)
    return Revision(name, commit, partial(_read_committed, files, folder, name))


def _commit(root: Path, name: str) -> tuple[Path, str]:
    """Return git's root and the commit of a revision.

    Raises:
        InputError: git is not there or not readable, or has no such revision.
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
            "create a repository: git init"
        ) from None
    except GitError as error:
        if not (owned := re.search("path '(.*)' is not owned", str(error))):
            raise InputError(f"git cannot read {root} ({error}); try 'git status' there") from None
        raise InputError(
            f"{owned[1]} belongs to another user, so git does not trust it; if you do: "
            f"git config --global --add safe.directory {shlex.quote(owned[1])}"
        ) from None


def repository_root() -> Path:
    """Return the root of the DVC repository.

    Raises:
        InputError: this is not a DVC repository.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Path(Repo.find_root()).resolve()
    except NotDvcRepoError:
        raise InputError("this is not a DVC repository; run it in the project's folder") from None


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
