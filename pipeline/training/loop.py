"""The training loop that `train` and `scst` share."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.runtime.checkpoint import Checkpoint
from pipeline.training.base_trainer import BaseTrainer
from pipeline.training.history import History, Row

log = logging.getLogger(__name__)


def fit(
    trainer: BaseTrainer,
    validate: Callable[[], Row],
    write_best: Callable[[], None],
    out: Path,
    history: History,
    checkpoint: Checkpoint,
    epochs: int,
    patience: int,
) -> None:
    """Train until all epochs are done or patience runs out; keep the best epoch's model at `out`.

    A run that was killed resumes at the step of its last checkpoint and ends with the same bytes.

    Args:
        validate: returns the validation columns of the trainer's decoder.
        write_best: writes that decoder to `out`.
        history: may have a row of epoch 0, with its model at `out`.
    """

    def save() -> None:
        tensors, header = trainer.state_dict()
        checkpoint.save(tensors, header | {"rows": history.rows})

    if saved := checkpoint.restore():
        history.rows = saved[1]["rows"]
        checkpoint.restore_best(out)
        if checkpoint.complete:
            checkpoint.log_complete()
        else:
            trainer.load_state_dict(saved)
            log.info("resuming an interrupted run after epoch %d", history.last_epoch)
    elif history.rows:
        checkpoint.save_best(out)
    if history.rows and trainer.ranks.is_main:
        history.write()

    while not history.is_over(epochs, patience):
        epoch, start = history.last_epoch + 1, time.monotonic()
        with checkpoint.saving_after_steps(save) as after_step:
            stats = trainer.train_epoch(epoch, after_step)
        trained = time.monotonic()
        history.rows.append({"epoch": epoch, **stats, **validate()})
        if history.best_epoch == epoch:
            if trainer.ranks.is_main:
                write_best()
            checkpoint.save_best(out)
        save()
        if trainer.ranks.is_main:
            history.write()
        columns = [f"{k} {v:.4g}" for k, v in history.rows[-1].items() if v is not None]
        log.info(
            "epoch %d/%d: %s%s (%.0f s, and %.0f s to validate)",
            epoch,
            epochs,
            ", ".join(columns[1:]),
            " *" if history.best_epoch == epoch else "",
            trained - start,
            time.monotonic() - trained,
        )

    if history.last_epoch < epochs:
        log.info("stopped: no better epoch in the last %d", patience)
    log.info("kept epoch %d", history.best_epoch)
    checkpoint.mark_complete({"rows": history.rows})
