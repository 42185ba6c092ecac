"""Which weights are kept, and that a few hundred captions are enough to learn from."""

import re
from pathlib import Path

import pytest
import torch

from pipeline.captions.table import read_table
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.dataset.feature_cache import read_features
from pipeline.dataset.split import load_split
from pipeline.decoders.captioner_file import read_model
from pipeline.generation.generate import greedy_validator
from pipeline.training.history import History
from tests.conftest import Artifacts
from tests.test_train import run

CPU = torch.device("cpu")


def test_it_stops_early_and_keeps_the_best_epoch(tiny: Artifacts, tmp_path: Path) -> None:
    model, history = run(tiny, tmp_path, epochs=60, patience=3, learning_rate=0.03)
    best = history["cider"].idxmax()
    assert history["cider"][best] > 0
    assert len(history) == best + 1 + 3 < 60
    table = read_table(tiny.table)
    words = read_vocabulary(tiny.vocabulary, table.info.table_digest)
    val = load_split(read_features(tiny.features), table, "val", words, CPU)
    made = read_model(model, CPU)
    kept = greedy_validator(made.decoder, val, words, made.max_length)()
    assert kept["cider"] == pytest.approx(history["cider"][best], rel=1e-4)


def history(*scores: tuple[float, float]) -> History:
    """Epochs of these CIDEr and val losses."""
    made = History(Path("history.csv"), rank_by=["cider", "-val_loss"])
    for epoch, (cider, loss) in enumerate(scores, start=1):
        made.rows.append({"epoch": epoch, "cider": cider, "val_loss": loss})
    return made


def test_of_equal_scores_the_lower_val_loss_is_better() -> None:
    assert history((0, 5.0), (0, 4.0), (0, 4.5)).best_epoch == 2
    assert history((3, 5.0), (2, 4.0), (3, 4.5)).best_epoch == 3
    assert history((3, 4.0), (3, 4.0)).best_epoch == 1


def test_patience_begins_with_the_first_score_above_0() -> None:
    silent = [(0, 4.0 + loss) for loss in range(6)]  # the loss gets worse as well
    assert not history(*silent).is_over(9, patience=2)
    assert not history(*silent, (1, 4.0), (0, 3.0)).is_over(9, patience=2)
    assert history((1, 4.0), (0, 3.0), (0, 3.0)).is_over(9, patience=2)
    assert history(*silent, *silent[:3]).is_over(9, patience=2)  # all epochs are over


def test_small_data_sets_are_trained_on_in_smaller_batches(tiny: Artifacts, tmp_path: Path) -> None:
    """200 captions in batches of 128 are two steps per epoch: too few to learn anything."""
    losses = {}
    for steps in (1, 40):
        (folder := tmp_path / str(steps)).mkdir()
        changes = {"epochs": 4, "batch_size": 128, "min_epoch_steps": steps}
        losses[steps] = run(tiny, folder, **changes)[1]["val_loss"].iloc[-1]
    assert losses[40] < 0.85 * losses[1]


def test_a_model_that_says_less_than_one_caption_of_all_is_warned_of(
    tiny: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny, tmp_path, epochs=1, learning_rate=1e-9)
    (warning,) = (one for one in caplog.records if one.levelname == "WARNING")
    assert re.search(r"val CIDEr, .*, is below the .* of a constant caption", warning.message)


def test_the_average_of_the_weights_is_what_is_validated_and_kept(
    tiny: Artifacts, tmp_path: Path
) -> None:
    """After a few steps it is near the weights themselves, and no longer near the first ones."""
    histories, kept = [], []
    for ema in (0.0, 0.997):
        (folder := tmp_path / str(ema)).mkdir()
        model, history = run(tiny, folder, ema_decay=ema)
        histories.append(history)
        kept.append(read_model(model, CPU).decoder.state_dict()["embed.weight"])
    plain, averaged = histories
    assert (plain["train_loss"] == averaged["train_loss"]).all()  # the steps are the same
    assert (plain["val_loss"] != averaged["val_loss"]).all()
    assert not torch.equal(*kept)
    progress = plain["val_loss"].iloc[0] - plain["val_loss"].iloc[-1]
    assert abs(averaged["val_loss"].iloc[-1] - plain["val_loss"].iloc[-1]) < 0.5 * progress
