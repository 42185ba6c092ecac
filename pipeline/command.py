"""The edge of every command: arguments in, one clear line out when something is wrong."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from pipeline.errors import InputError, printable

INTERRUPTED = "interrupted; nothing finished was lost, run the same command to go on"
DROPPED = "interrupted; DVC drops what a --temp or queued experiment had begun, so start it again"

# What takes less memory, by command.
LOWER = {
    "extract": "extract.batch_size, extract.workers or extract.image_size",
    "train": "train.batch_size or train.hidden_size",
    "scst": "scst.pictures or scst.samples",
    "evaluate": "evaluate.batch_size or evaluate.beam",
    "caption": "--beam or --samples, or caption fewer photos at a time,",
}


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
    # What schedulers send before they kill, and terminals when they close: a run may end as after
    # Ctrl-C. What is ignored (nohup) stays so.
    ending = (signal.SIGTERM, signal.SIGHUP)
    before = {one: signal.getsignal(one) for one in ending}
    for one in ending:
        if before[one] != signal.SIG_IGN:
            signal.signal(one, signal.default_int_handler)
    try:
        yield
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(_interrupted(), 130)
    except SystemExit as end:
        if end.code == 130:  # Typer's answer to Ctrl-C, which says nothing
            fail(_interrupted(), 130)
        raise
    except BrokenPipeError:
        os._exit(141)  # the reader of our output left: the shell's code for SIGPIPE
    except MemoryError:
        fail(_out_of_memory("this machine"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            fail(f"no space left on the disk{where}; free some and run the same command again")
        if error.errno == errno.EFBIG:
            fail("a file grew larger than is allowed here (ulimit -f, or the file system)")
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}; check the path and its permissions")
    except RuntimeError as error:
        # torch's own, without importing torch.
        if type(error).__name__ == "OutOfMemoryError":
            fail(_out_of_memory("the GPU"))
        if "can't allocate memory" in str(error):
            fail(_out_of_memory("this machine"))
        raise
    finally:
        for one, handled in before.items():
            signal.signal(one, handled)


def _interrupted() -> str:
    return DROPPED if ".dvc/tmp/exps" in Path.cwd().as_posix() else INTERRUPTED


def _out_of_memory(what: str) -> str:
    """`python -m pipeline.STAGE` and `showtell STAGE` are told apart by where the name stands."""
    names = [Path(word).stem for word in sys.argv[:2]]
    lower = next((LOWER[name] for name in names if name in LOWER), "the sizes in params.yaml")
    return f"{what} is out of memory; lower {lower} and run the same command again"


class _Printable(logging.Formatter):
    """The message alone, made harmless."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def fail(line: str, code: int = 1) -> NoReturn:
    """Print the line that explains the failure, and exit."""
    print("error: " + printable(" ".join(line.split())), file=sys.stderr, flush=True)
    raise SystemExit(code)
