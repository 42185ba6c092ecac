"""File locks between processes."""

import fcntl
import logging
from typing import IO, Any

log = logging.getLogger(__name__)


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file without waiting; return whether no other process has it locked.

    The lock lasts until the file is closed or the process ends, even by SIGKILL. A file system
    without locks counts as unlocked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        log.debug("the file system has no locks")
    return True
