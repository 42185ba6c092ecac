"""How long a caption may be follows from the captions, and is the same wherever one is made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipeline.config.load import load_params
from pipeline.config.schema import EvaluateConfig, ScstConfig, VocabConfig
from pipeline.decoders.captioner_file import read_model
from pipeline.generation.sampling import sample
from pipeline.runtime.errors import InputError
from pipeline.runtime.tensors import read_tensors, write_tensors
from pipeline.self_critical import trainer
from pipeline.stages.scst import scst
from pipeline.stages.vocab import make_vocabulary
from tests.conftest import Artifacts, command, write_params

CPU = torch.device("cpu")
WORDS = 39


@dataclass(frozen=True)
class Long:
    """A model of captions of 39 words, and what it learned from."""

    table: Path
    model: Path
    history: pd.DataFrame
    log: str


@pytest.fixture(scope="module")
def long(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Long:
    """The first word of each caption of the little world, and then all count up to 38."""
    folder = tmp_path_factory.mktemp("long")
    rows = pd.read_csv(tiny.table, dtype=str)
    counting = " ".join(f"w{number}" for number in range(1, WORDS))
    rows["tokens"] = [f"{words.split()[0]} {counting}" for words in rows["tokens"]]
    table = tiny.with_table(folder, rows.to_csv(index=False))
    vocabulary, model = folder / "vocabulary.json", folder / "model.safetensors"
    changes = {"epochs": 6, "dropout": 0.0}
    params = write_params(folder / "params.yaml", train=changes)
    make_vocabulary(table, vocabulary, load_params(params, VocabConfig))
    given = {
        **{"features": tiny.features, "captions": table},
        **{"vocabulary": vocabulary, "out": model, "history": folder / "history.csv"},
    }
    options = (word for name, path in given.items() for word in (f"--{name}", path))
    done = command("train", *options, "--params", params)
    assert done.returncode == 0, done.stderr
    return Long(table, model, pd.read_csv(folder / "history.csv"), done.stderr)


def test_validation_lets_captions_be_as_long_as_those_in_training(long: Long) -> None:
    """Cut off at 20 words, the best of them would have a BLEU-4 of 39."""
    assert read_model(long.model, CPU).max_length == WORDS
    assert long.history["bleu_4"].max() > 60
    assert "captions of at most 39 tokens; 0 training captions are longer" in long.log


def test_so_do_draws(tiny: Artifacts, long: Long, tmp_path: Path, monkeypatch: Any) -> None:
    drawn = []

    def noted(*arguments: Any) -> torch.Tensor:
        drawn.append(sample(*arguments))
        return drawn[-1]

    monkeypatch.setattr(trainer, "sample", noted)
    config = load_params(write_params(tmp_path / "p.yaml", scst={"epochs": 1}), ScstConfig)
    inputs = (long.model, tiny.features, long.table)
    scst(*inputs, tmp_path / "m.safetensors", tmp_path / "scst.csv", config)
    assert max(captions.shape[1] for captions in drawn) == WORDS + 1  # and <end>
    assert read_model(tmp_path / "m.safetensors", CPU).max_length == WORDS


@pytest.mark.parametrize(("max_length", "longest"), [("auto", WORDS), (30, 30)])
def test_so_does_evaluation_unless_told_otherwise_and_it_counts_what_got_there(
    tiny: Artifacts,
    long: Long,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    max_length: Any,
    longest: int,
) -> None:
    changes = {"max_length": max_length, "no_repeat_ngram_size": 0, "length_penalty": 2.0}
    params = write_params(tmp_path / "params.yaml", evaluate=changes)
    other = {"model": long.model, "table": long.table}
    tiny.evaluate(load_params(params, EvaluateConfig), tmp_path, **other)
    words = pd.read_csv(tmp_path / "scores.csv")["words"]
    assert words.max() == longest
    (table_info,) = json.loads((tmp_path / "metrics.json").read_text())["meta"]
    assert table_info["max_length"] == longest
    assert table_info["at_max_length"] == (words == longest).sum()
    assert (f"the {longest} words that evaluate.max_length allows" in caplog.text) == (
        max_length != "auto"
    )


@pytest.mark.parametrize(("no_repeat_ngram_size", "warned"), [(2, True), (0, False)])
def test_a_rule_that_most_captions_break_is_warned_of(
    tiny: Artifacts, tmp_path: Path, caplog: Any, no_repeat_ngram_size: int, warned: bool
) -> None:
    """Paragraphs say pairs of words twice; so do the little world's captions, said twice."""
    rows = pd.read_csv(tiny.table, dtype=str)
    rows["tokens"] = [f"{words} and {words}" for words in rows["tokens"]]
    table = tiny.with_table(tmp_path, rows.to_csv(index=False))
    params = write_params(
        tmp_path / "params.yaml", evaluate={"no_repeat_ngram_size": no_repeat_ngram_size}
    )
    tiny.evaluate(load_params(params, EvaluateConfig), tmp_path, table=table)
    said = [one for one in caplog.messages if "evaluate.no_repeat_ngram_size: 2 forbids" in one]
    assert bool(said) == warned
    assert not warned or "100 % of the training captions" in said[0]


@pytest.mark.parametrize("claimed", [0, 10**9, "39", None])
def test_a_model_that_claims_captions_of_any_length_is_refused(
    long: Long, tmp_path: Path, claimed: Any
) -> None:
    """A search sets memory aside for the longest."""
    tensors, header = read_tensors(long.model)
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors, header | {"max_length": claimed})
    with pytest.raises(InputError, match=r"model\.safetensors does not say what it was trained on"):
        read_model(path, CPU)
