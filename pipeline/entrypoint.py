"""The edge of every command: arguments in, one clear line out when something is wrong."""

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from pipeline.runtime.errors import InputError, sanitize
from pipeline.runtime.files import in_experiment

INTERRUPTED = "interrupted; nothing finished was lost, run the same command to go on"
DROPPED = "interrupted; DVC drops what a --temp or queued experiment had begun, so start it again"

# What takes less memory, by command.
MEMORY_HINTS = {
    "extract": "extract.batch_size, extract.num_workers or extract.image_size",
    "train": "train.batch_size or train.hidden_size",
    "scst": "scst.batch_size or scst.samples_per_image",
    "evaluate": "evaluate.batch_size or evaluate.beam_size",
    "caption": "--beam-size or --num-samples, or caption fewer photos at a time,",
}


def app(**settings: Any) -> typer.Typer:
    """A Typer application that leaves errors to `one_line_errors`."""
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings
    )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and a non-zero exit.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        with _signals_as_interrupt():
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(SanitizingFormatter())
            logging.basicConfig(level=logging.INFO, handlers=[handler])
            if isinstance(sys.stdout, io.TextIOWrapper):  # an escape rather than an end, in ASCII
                sys.stdout.reconfigure(errors="backslashreplace")
            yield
    except InputError as error:
        exit_with_error(str(error))
    except KeyboardInterrupt:
        exit_with_error(_interrupted(), 130)
    except BrokenPipeError:
        os._exit(141)  # the reader of our output left: the shell's code for SIGPIPE
    except MemoryError:
        exit_with_error(_out_of_memory("this machine"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            exit_with_error(
                f"no space left on the disk{where}; free some and run the same command again"
            )
        if error.errno == errno.EFBIG:
            exit_with_error(
                "a file grew larger than is allowed here (ulimit -f, or the file system)"
            )
        if error.filename is None:
            raise
        exit_with_error(f"{error.filename}: {error.strerror}; check the path and its permissions")
    except RuntimeError as error:
        # torch's own, without importing torch.
        if type(error).__name__ == "OutOfMemoryError":
            exit_with_error(_out_of_memory("the GPU"))
        if "can't allocate memory" in str(error):
            exit_with_error(_out_of_memory("this machine"))
        raise


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Ctrl-C, what schedulers send before they kill (SIGTERM), and terminals when they close
    (SIGHUP) end a run alike: by a KeyboardInterrupt. What is ignored (nohup) stays so."""
    asked = False

    def ask(*_: Any) -> NoReturn:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [one for one in signals if signal.getsignal(one) != signal.SIG_IGN]
    before = {one: signal.signal(one, ask) for one in heard}
    try:
        yield
    except SystemExit as end:
        # Typer's answer to Ctrl-C is 130 and not a word; other failures may come of it.
        if end.code == 130 or (asked and end.code):
            raise KeyboardInterrupt from None
        raise
    except BaseException:  # Rust's panics are no Exceptions
        if asked:  # a library made an error of its own of it, as pydantic does
            raise KeyboardInterrupt from None
        raise
    finally:
        for one, handled in before.items():
            signal.signal(one, handled)


def _interrupted() -> str:
    return DROPPED if in_experiment() else INTERRUPTED


def _out_of_memory(what: str) -> str:
    lower = MEMORY_HINTS.get("".join(sys.argv[1:2]), "the sizes in params.yaml")
    return f"{what} is out of memory; lower {lower} and run the same command again"


class SanitizingFormatter(logging.Formatter):
    """The message alone, made harmless; its own lines stay."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(sanitize, super().format(record).split("\n")))


def exit_with_error(line: str, code: int = 1) -> NoReturn:
    """Print the line that explains the failure, and exit."""
    print("error: " + sanitize(" ".join(line.split())), file=sys.stderr, flush=True)
    raise SystemExit(code)
