"""What every command shares: Typer settings, logging, and errors as one line."""

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from pipeline.runtime.errors import InputError, sanitize
from pipeline.runtime.files import in_experiment
from pipeline.runtime.signals import handle_stop_signals

INTERRUPTED = "interrupted; progress is saved; rerun the same command to resume"
DISCARDED = "interrupted; DVC discards an unfinished --temp or queued experiment; start it again"

# By command, what to lower when memory runs out.
MEMORY_HINTS = {
    "extract": "extract.batch_size, extract.num_workers or extract.image_size",
    "train": "train.batch_size or train.hidden_size",
    "scst": "scst.batch_size or scst.samples_per_image",
    "evaluate": "evaluate.batch_size or evaluate.beam_size",
    "caption": "--beam-size or --num-samples, or caption fewer photos at a time,",
}


def app(**settings: Any) -> typer.Typer:
    """Create a Typer application that leaves errors to `one_line_errors`."""
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings
    )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can fix into one line on stderr and a non-zero exit code.

    Any other error is a bug and keeps its traceback.
    """
    try:
        with _signals_as_interrupt():
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(SanitizingFormatter())
            logging.basicConfig(level=logging.INFO, handlers=[handler])
            if "RANK" in os.environ:  # torch reports lost connections with stacks, on many lines
                os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
            if isinstance(sys.stdout, io.TextIOWrapper):  # for captions on an ASCII terminal
                sys.stdout.reconfigure(errors="backslashreplace")
            yield
    except InputError as error:
        exit_with_error(str(error))
    except KeyboardInterrupt:
        exit_with_error(DISCARDED if in_experiment() else INTERRUPTED, 130)
    except BrokenPipeError:
        os._exit(141)  # the shell's code for SIGPIPE
    except MemoryError:
        exit_with_error(_out_of_memory("this machine"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            exit_with_error(f"no space left on the disk{where}; free some and rerun the command")
        if error.errno == errno.EFBIG:
            exit_with_error("a file exceeds the size limit of the shell (ulimit -f) or file system")
        if error.filename is None:
            raise
        exit_with_error(f"{error.filename}: {error.strerror}; check the path and its permissions")
    except RuntimeError as error:
        # torch.OutOfMemoryError, without importing torch.
        if type(error).__name__ == "OutOfMemoryError":
            exit_with_error(_out_of_memory("the GPU"))
        if "can't allocate memory" in str(error):
            exit_with_error(_out_of_memory("this machine"))
        raise


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on any stop signal, even if a library turns it into an error."""
    interrupted = False

    def on_signal(*_: Any) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    try:
        with handle_stop_signals(on_signal):
            yield
    except SystemExit as end:
        # Typer exits with 130 on Ctrl-C, without a message.
        if end.code == 130 or (interrupted and end.code):
            raise KeyboardInterrupt from None
        raise
    except BaseException:  # Rust's panics are not Exceptions
        if interrupted:  # pydantic, for one, turns it into an error of its own
            raise KeyboardInterrupt from None
        raise


def _out_of_memory(device: str) -> str:
    params = MEMORY_HINTS.get("".join(sys.argv[1:2]), "the sizes in params.yaml")
    return f"{device} is out of memory; lower {params} and rerun the command"


class SanitizingFormatter(logging.Formatter):
    """Formats the message alone, without control characters; its line breaks stay."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(sanitize, super().format(record).split("\n")))


def exit_with_error(line: str, code: int = 1) -> NoReturn:
    """Print an error on one line, and exit."""
    print("error: " + sanitize(" ".join(line.split())), file=sys.stderr, flush=True)
    raise SystemExit(code)
