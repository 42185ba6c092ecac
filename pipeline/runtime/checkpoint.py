"""Where a long stage stands, on disk, so that a killed one goes on from there.

A hidden folder beside its output, no output of DVC: what lies there is taken up only by a run with
the same params, inputs, code and versions. It outlives the run until another stage reads what the
run made: DVC may be killed before it has noted that the stage ended, and would run it again.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.runtime.errors import InputError
from pipeline.runtime.files import atomic_write, file_digest
from pipeline.runtime.tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)
CODE = Path(__file__).resolve().parent.parent


class Checkpoint:
    """The state of one run of a stage, by turns, and the best model that it has made."""

    def __init__(self, out: Path, fingerprint: str, seconds: float) -> None:
        """
        Args:
            out: where the stage writes its output; the folder is `.NAME.resume` beside it.
            fingerprint: of all that the run's result depends on.
            seconds: how much work may be lost at most; 0 saves after every step.
        """
        self.out, self.folder = out, out.with_name(f".{out.name}.resume")
        self.state, self.lock = self.folder / "state.safetensors", self.folder / "lock"
        self._fingerprint, self._seconds = fingerprint, seconds
        self._best: str | None = None  # the best model's digest, by which its file is called
        self.finished = False  # the run that `load` found had come to its end
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and header as last saved, if they are this very run's; what is not is removed,
        and the log says so. From here on, no other process makes the same output.

        Raises:
            InputError: another one does, or the output's place is a folder's.
        """
        self._acquire_lock()
        if not self.state.exists():
            self._clear()
            return None
        try:
            tensors, header = read_tensors(self.state, made_by="train")
            if header.pop("fingerprint", None) != self._fingerprint:
                log.info(
                    "an earlier run was of other params, inputs, code or versions: starting afresh"
                )
            else:
                self._best = header.pop("best")
                self._require_best()
                self.finished = header.pop("finished", False)
                if self.finished and "contents" not in header:  # else `rows` has more to compare
                    self.say_ended()
                return tensors, header
        except InputError:
            log.info("what an interrupted run left in %s is damaged: starting afresh", self.folder)
        self._clear()
        return None

    def say_ended(self) -> None:
        log.info(
            "a run of the same params, inputs, code and versions has ended before: this is what it "
            "made (remove %s to make it again)",
            self.folder,
        )

    def _acquire_lock(self) -> None:
        """A lock that ends with this process, however it ends."""
        if self.out.is_dir():
            raise InputError(f"{self.out} is a folder; name a file to write")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = self.lock.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system that knows no locks
            other = self.lock.read_text(encoding="utf-8")
            raise InputError(
                f"process {other} is already making {self.out}; end it (kill {other}), and what "
                "it has done is gone on with"
            ) from None
        self._held.truncate(0)
        self._held.write(str(os.getpid()))
        self._held.flush()

    def _clear(self) -> None:
        self._best = None
        for path in self.folder.iterdir():
            if path != self.lock:
                path.unlink()

    def _path_of(self, digest: str) -> Path:
        return self.folder / f"best-{digest}.safetensors"

    def _require_best(self) -> None:
        """
        Raises:
            InputError: the best model, which will be handed out, is not what was kept.
        """
        if self._best is not None:
            best = self._path_of(self._best)
            if not best.exists() or file_digest(best) != self._best:
                raise InputError(f"{best} is damaged")

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, tensors: dict[str, Tensor], header: Mapping[str, Any]) -> None:
        own = {"fingerprint": self._fingerprint, "best": self._best}
        write_tensors(self.state, tensors, {**header, **own})
        for path in self.folder.glob("best-*.safetensors"):  # no state names these any more
            if self._best is None or path != self._path_of(self._best):
                path.unlink()
        self._saved = time.monotonic()

    @contextmanager
    def steps(self, save: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """Gives what is to be called after every step: it saves when that is due.

        Ctrl-C, SIGTERM and a closed terminal wait for the end of a step, for only then is there
        anything whole to save, and end the run there. After the last step all is saved as well.
        """
        asked = False

        def ask(*_: Any) -> None:
            nonlocal asked
            asked = True

        def after_step() -> None:
            if asked or self.due:
                save()
            if asked:
                raise KeyboardInterrupt

        with _handling(ask, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            yield after_step
        save()
        if asked:
            raise KeyboardInterrupt

    def save_best(self, model: Path) -> None:
        """A copy of the best model: DVC takes a stage's outputs away before it runs again. The one
        before it stays until a state has been saved that names this one."""
        self._best = file_digest(model)
        with atomic_write(self._path_of(self._best)) as scratch:
            shutil.copyfile(model, scratch)

    def restore_best(self, model: Path) -> None:
        """Whatever is there: it need not be this run's."""
        if self._best is not None:
            with atomic_write(model) as scratch:
                shutil.copyfile(self._path_of(self._best), scratch)

    def mark_complete(self, header: Mapping[str, Any]) -> None:
        """The run has ended, and its output is in place."""
        try:
            self.save({}, {**header, "finished": True})
            self.release()
        except OSError:  # a disk that is full now has all that was asked for
            self.drop()

    def release(self) -> None:
        """Others may make the same output."""
        self._held.close()

    def drop(self) -> None:
        """Nothing is left to go on with."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def discard_if_complete(out: Path) -> None:
    """To be called by who reads a stage's output: that the stage has ended is known by now, and
    how it went need not be kept any longer."""
    checkpoint = Checkpoint(out, "", 0)
    # Where there is nothing, or somebody is at it, there is nothing to do.
    with suppress(InputError, OSError), checkpoint.lock.open("a") as held:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if read_tensors(checkpoint.state, made_by="train")[1].get("finished"):
            shutil.rmtree(checkpoint.folder, ignore_errors=True)


@contextmanager
def _handling(handler: Callable[..., None], *signals: signal.Signals) -> Iterator[None]:
    """With this handler of these signals, but for what is ignored (nohup); only a process's main
    thread can have any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [one for one in signals if signal.getsignal(one) != signal.SIG_IGN]
    before = {one: signal.signal(one, handler) for one in heard}
    try:
        yield
    finally:
        for one, handled in before.items():
            signal.signal(one, handled)


def run_fingerprint(params: Any, inputs: Sequence[Path], device: str) -> str:
    """Of params, the inputs' bytes, the project's code, torch, and the kind of device."""
    digest = hashlib.sha256(json.dumps([params, device, torch.__version__]).encode())
    for path in inputs:
        digest.update(file_digest(path).encode())
    for path in sorted(CODE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
