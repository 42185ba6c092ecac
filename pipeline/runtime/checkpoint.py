"""Checkpoints that let a killed stage resume.

A checkpoint is a folder beside the stage's output, and not an output of DVC's: a run resumes from
it only if params, inputs, code and versions are the same. Its states:

    absent → running → complete → absent

The first `save` makes it running, `mark_complete` makes it complete, and the next stage, when it
reads the output, discards it (`discard_if_complete`): DVC may be killed before it records that
the stage finished, and then a rerun takes the output from the complete checkpoint.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from pipeline.runtime.code import code_digest
from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.files import copy_file, file_digest
from pipeline.runtime.locks import try_lock
from pipeline.runtime.signals import handle_stop_signals
from pipeline.runtime.tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)

State = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and a JSON header


class Checkpoint:
    """The saved state of one run of a stage, and the best model so far.

    A context manager: while it is open, no other process can write the same output.
    """

    def __init__(
        self, out: Path, fingerprint: str, interval: float, may_be_folder: bool = False
    ) -> None:
        """
        Args:
            out: where the stage writes its output; the folder is `.NAME.resume` beside it.
            fingerprint: of everything that the run's result depends on.
            interval: the seconds of work that a kill may cost; 0 saves after every step.
            may_be_folder: whether a folder at `out` may be replaced.
        """
        self._may_be_folder = may_be_folder
        self.out, self.folder = out, _folder(out)
        self.state, self.lock = self.folder / "state.safetensors", self.folder / "lock"
        self.complete = False  # whether the restored run had finished
        self._fingerprint, self._interval = fingerprint, interval
        self._best: str | None = None  # the digest of the best model's file, which names it
        self._saved = time.monotonic()

    def __enter__(self) -> Self:
        """Lock the output.

        Raises:
            InputError: another process writes the same output, or its path is a folder.
        """
        if self.out.is_dir() and not self._may_be_folder:
            raise InputError(f"{self.out} is a folder; name a file to write")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = self.lock.open("a+", encoding="utf-8")
        if not try_lock(self._lock_file):
            self._lock_file.close()
            other = self.lock.read_text(encoding="utf-8")
            raise InputError(
                f"process {other} is already writing {self.out}; stop it (kill {other}) and "
                "rerun: the run resumes from its last checkpoint"
            )
        self._lock_file.truncate(0)
        self._lock_file.write(str(os.getpid()))
        self._lock_file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock_file.close()

    def restore(self) -> State | None:
        """Return the last saved state of this run, or None.

        The state of another run is deleted, with a log message.
        """
        if not self.state.exists():
            self._clear()
            return None
        try:
            tensors, header = read_tensors(self.state)
            if header.pop("fingerprint", None) == self._fingerprint:
                self._best = header.pop("best")
                self._check_best()
                self.complete = header.pop("complete", False)
                return tensors, header
            log.info(
                "ignoring a checkpoint made with different params, inputs, code or versions; "
                "starting over"
            )
        except InputError:
            log.info("the checkpoint in %s is damaged; starting over", self.folder)
        self._clear()
        return None

    def log_complete(self) -> None:
        """Log that the restored run had finished."""
        log.info(
            "this exact run already finished; restoring its output (delete %s to rerun)",
            self.folder,
        )

    def _clear(self) -> None:
        self._best = None
        for path in self.folder.iterdir():
            if path != self.lock:
                path.unlink()

    def _best_path(self, digest: str) -> Path:
        return self.folder / f"best-{digest}.safetensors"

    def _check_best(self) -> None:
        if self._best is not None:
            best = self._best_path(self._best)
            if not best.exists() or file_digest(best) != self._best:
                raise ArtifactError(best, "is damaged")

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._interval

    def save(self, tensors: dict[str, Tensor], header: Mapping[str, Any]) -> None:
        """Save the state atomically; delete best models that it does not name."""
        own = {"fingerprint": self._fingerprint, "best": self._best}
        write_tensors(self.state, tensors, {**header, **own})
        for path in self.folder.glob("best-*.safetensors"):
            if self._best is None or path != self._best_path(self._best):
                path.unlink()
        self._saved = time.monotonic()

    @contextmanager
    def saving_after_steps(self, save: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """Yield a function to call after every step, which saves when that is due.

        SIGINT, SIGTERM and SIGHUP wait for the end of a step, since only then is the state whole,
        and end the run there. The state is also saved after the last step.
        """
        interrupted = False

        def on_signal(*_: Any) -> None:
            nonlocal interrupted
            interrupted = True

        def after_step() -> None:
            stops = self.stops(interrupted)
            if stops or self.is_due():
                save()
            if stops:
                self.interrupt()

        with handle_stop_signals(on_signal):
            yield after_step
        save()
        if self.stops(interrupted):
            self.interrupt()

    def stops(self, interrupted: bool) -> bool:
        """Whether the run ends after this step, with a stop signal in this process or without."""
        return interrupted

    def interrupt(self) -> NoReturn:
        """End the run, whose state has been saved."""
        raise KeyboardInterrupt

    def save_best(self, model: Path) -> None:
        """Copy the best model: DVC deletes a stage's outputs before it reruns the stage.

        The previous copy stays until a saved state names this one.
        """
        self._best = file_digest(model)
        copy_file(model, self._best_path(self._best))

    def restore_best(self, model: Path) -> None:
        """Copy the best model back, over any file at `model`: it may be another run's."""
        if self._best is not None:
            copy_file(self._best_path(self._best), model)

    def mark_complete(self, header: Mapping[str, Any]) -> None:
        """Record that the run has finished and its output is in place."""
        try:
            self.save({}, {**header, "complete": True})
        except OSError:  # the disk is full, but the output is in place
            self.delete()

    def delete(self) -> None:
        """Delete the checkpoint."""
        shutil.rmtree(self.folder, ignore_errors=True)


def discard_if_complete(out: Path) -> None:
    """Delete the checkpoint of a finished run.

    Called by the stage that reads `out`: if that stage runs, DVC has recorded that the producer
    finished.
    """
    folder = _folder(out)
    # If there is none, or another process holds it, there is nothing to do.
    with suppress(InputError, OSError), (folder / "lock").open("a") as lock:
        if try_lock(lock) and read_tensors(folder / "state.safetensors")[1].get("complete"):
            shutil.rmtree(folder, ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.resume")


def run_fingerprint(stage: str, params: Any, inputs: Sequence[Path], device: str) -> str:
    """Return a fingerprint of params, inputs' bytes, the stage's code, torch and device type."""
    content = json.dumps([params, device, torch.__version__, code_digest(stage)])
    digest = hashlib.sha256(content.encode())
    for path in inputs:
        digest.update(file_digest(path).encode())
    return digest.hexdigest()
