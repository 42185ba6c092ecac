"""Where a long stage stands, on disk, so that a killed one goes on from there.

A hidden folder beside its output, no output of DVC: what lies there is taken up only by a run with
the same params, inputs, code and versions, and is gone once the run has ended.
"""

import hashlib
import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.store.files import atomic, file_digest
from pipeline.store.tensors import read_tensors, write_tensors

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
        self.folder = out.with_name(f".{out.name}.resume")
        self.best = self.folder / "best.safetensors"
        self._state = self.folder / "state.safetensors"
        self._fingerprint, self._seconds = fingerprint, seconds
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and header as last saved, if they are this very run's; what is not is removed,
        and the log says so."""
        if not self._state.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        try:
            tensors, header = read_tensors(self._state, made_by="train")
            if header.pop("fingerprint", None) != self._fingerprint:
                log.info(
                    "an interrupted run was of other params, inputs, code or versions: "
                    "starting afresh"
                )
            else:
                if header.pop("best", False):
                    read_tensors(self.best, made_by="train")  # it will be handed out: is it whole?
                return tensors, header
        except InputError:
            log.info("what an interrupted run left in %s is damaged: starting afresh", self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, tensors: dict[str, Tensor], header: Mapping[str, Any]) -> None:
        own = {"fingerprint": self._fingerprint, "best": self.best.exists()}
        write_tensors(self._state, tensors, {**header, **own})
        self._saved = time.monotonic()

    @contextmanager
    def steps(self, save: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """Gives what is to be called after every step: it saves when that is due.

        Ctrl-C and SIGTERM wait for the end of a step, for only then is there anything whole to
        save, and end the run there. After the last step all is saved as well.
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

        with _handling(ask, signal.SIGINT, signal.SIGTERM):
            yield after_step
        save()
        if asked:
            raise KeyboardInterrupt

    def keep_best(self, model: Path) -> None:
        """A copy of the best model: DVC takes a stage's outputs away before it runs again."""
        with atomic(self.best) as scratch:
            shutil.copyfile(model, scratch)

    def give_back_best(self, model: Path) -> None:
        if self.best.exists() and not model.exists():
            with atomic(model) as scratch:
                shutil.copyfile(self.best, scratch)

    def finish(self) -> None:
        """The run has ended: nothing is left to go on with."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _handling(handler: Callable[..., None], *signals: signal.Signals) -> Iterator[None]:
    """With this handler of these signals; only a process's main thread can have any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, handler) for one in signals}
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
