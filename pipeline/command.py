"""The edge of every command: arguments in, one clear line out when something is wrong."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from pipeline.errors import InputError, printable

INTERRUPTED = "interrupted; nothing finished was lost, run the same command to go on"


def app(**settings: Any) -> typer.Typer:
    """A Typer application that leaves errors to `one_line_errors`."""
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings
    )


def run(main: Callable[..., None]) -> None:
    """Run one function as a command of its own: `python -m pipeline.STAGE`."""
    single = app()
    single.command()(main)
    with one_line_errors():
        single()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and a non-zero exit.

    Anything else is a defect of ours and keeps its traceback.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # What schedulers send before they kill: a run may end as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(INTERRUPTED, 130)
    except SystemExit as end:
        if end.code == 130:  # Typer's answer to Ctrl-C, which says nothing
            fail(INTERRUPTED, 130)
        raise
    except BrokenPipeError:
        os._exit(141)  # the reader of our output left: the shell's code for SIGPIPE
    except MemoryError:
        fail("out of memory; lower batch_size (scst: pictures) in params.yaml")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            fail(f"no space left on the disk{where}; free some and run the same command again")
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}; check the path and its permissions")
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
            fail("the GPU is out of memory; lower batch_size (scst: pictures) in params.yaml")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Printable(logging.Formatter):
    """The message alone, made harmless."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def fail(line: str, code: int = 1) -> NoReturn:
    """Print the line that explains the failure, and exit."""
    print("error: " + printable(" ".join(line.split())), file=sys.stderr, flush=True)
    raise SystemExit(code)
