"""Self-critical training: rewards are CIDEr-D, draws are the decoder's own, scores rise."""

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from safetensors.torch import load_file

from pipeline.captions.vocabulary import END, PAD, START, UNK, build_vocabulary
from pipeline.config.load import load_params
from pipeline.config.schema import ScstConfig, TrainConfig
from pipeline.dataset.batching import encode, sample_captions
from pipeline.decoders.registry import DECODERS
from pipeline.generation.sampling import SamplingConfig, log_probabilities, sample
from pipeline.metrics.rewards import BleuReward, CiderReward, References
from pipeline.metrics.scores import cider
from pipeline.runtime.errors import InputError
from pipeline.self_critical import policy
from pipeline.stages.scst import scst
from pipeline.stages.train import train
from tests.conftest import Artifacts, write_params
from tests.test_decoder import decoder, features_for

CPU = torch.device("cpu")


def sentences(rng: random.Random, count: int) -> list[list[int]]:
    return [[rng.randint(4, 12) for _ in range(rng.randint(1, 12))] for _ in range(count)]


def scored(
    kind: type[CiderReward | BleuReward],
    references: list[list[list[int]]],
    captions: list[list[int]],
    samples: int = 1,
) -> list[float]:
    """The rewards of `samples` captions of each image."""
    rows = [torch.tensor(one, dtype=torch.int64) for one in captions]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    images = torch.arange(len(captions) // samples)
    made: list[float] = kind(References(references, 100))(images, padded).tolist()
    return made


def test_the_reward_is_the_cider_of_the_reports() -> None:
    rng = random.Random(0)
    references = [sentences(rng, rng.randint(1, 5)) for _ in range(60)]
    captions = sentences(rng, 60)
    words = [[str(word) for word in caption] for caption in captions]
    expected = cider(words, [[[str(w) for w in one] for one in refs] for refs in references])[1]
    made = [100 * one for one in scored(CiderReward, references, captions)]
    assert made == pytest.approx(expected, abs=1e-9)


def test_captions_of_one_image_are_scored_beside_each_other() -> None:
    rng = random.Random(1)
    references = [sentences(rng, rng.randint(1, 5)) for _ in range(20)]
    captions = sentences(rng, 60)
    for kind in (CiderReward, BleuReward):
        together = scored(kind, references, captions, samples=3)
        thirds = [scored(kind, references, captions[number::3]) for number in range(3)]
        assert together == pytest.approx(
            [thirds[place % 3][place // 3] for place in range(60)], abs=1e-12
        )


def test_the_bleu_of_a_caption_is_nltks_smoothed_in_the_same_way() -> None:
    rng = random.Random(0)
    references = [sentences(rng, rng.randint(1, 5)) for _ in range(60)]
    captions = sentences(rng, 60)
    smoothed = SmoothingFunction().method2
    made = scored(BleuReward, references, captions)
    expected = [
        sentence_bleu(refs, caption, smoothing_function=smoothed)
        for refs, caption in zip(references, captions, strict=True)
    ]
    assert made == pytest.approx(expected, abs=1e-9)
    assert len({round(value, 3) for value in made}) > 30
    whole = max(references[0], key=len)
    assert len(whole) >= 4
    some = scored(BleuReward, references, [whole, [], [99, 98]], samples=3)
    assert some == pytest.approx([1, 0, 0])


def test_where_references_end_a_caption_that_breaks_off_is_worth_less() -> None:
    references = [[[5, 6, 7, END]], [[8, 9, 10, END]], [[5, 9, 11, END]]]
    captions = [[5, 6, 7, END], [5, 6, 7], [5, 6, END], [5, 5, 5, 5, END], []]
    whole, unended, short, repeated, empty = scored(CiderReward, references, captions, samples=5)
    assert whole == pytest.approx(10)
    assert 9 > unended > short > repeated > empty == 0


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("name", DECODERS)
def test_captions_are_drawn_as_often_as_the_decoder_finds_them_likely(
    name: str, temperature: float
) -> None:
    torch.manual_seed(0)
    model = decoder(name, vocabulary_size=7, dropout=0.5).eval()  # three words to say
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # not all alike
    features = features_for(model, 2)
    drawn = sample(model, features, 4000, SamplingConfig(temperature, max_length=2), seeded())
    assert drawn.shape == (8000, 3)
    assert not {START, UNK} & set(drawn.flatten().tolist())
    assert (drawn[:, 0] != END).all()
    assert (drawn[:, 0] != PAD).all()
    assert set(drawn[:, 2].tolist()) <= {END, PAD}
    with torch.no_grad():
        likely = log_probabilities(model, features, drawn, temperature)
    assert ((likely == 0) | (drawn != PAD)).all()
    for image in range(2):
        own = slice(image * 4000, (image + 1) * 4000)
        both = drawn[own, :2].tolist()
        for caption in {tuple(one) for one in both}:
            row = both.index(list(caption)) + image * 4000
            share = sum(tuple(one) == caption for one in both) / 4000
            assert share == pytest.approx(float(likely[row, :2].sum().exp()), abs=0.03)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_one_caption_of_each_image_is_its_own() -> None:
    references = [[["w"] * (image + 1)] * (1 + image % 3) for image in range(9)]
    captions = encode(references, build_vocabulary([["w"]], 1))
    images = torch.tensor([8, 0, 3, 3])
    batch = sample_captions(captions, images, seeded(), CPU)
    assert (batch.targets != PAD).sum(dim=1).tolist() == [10, 2, 5, 5]
    assert torch.equal(batch.images, images)


def run(
    tiny: Artifacts,
    trained: Path,
    folder: Path,
    captions: Path | None = None,
    **changes: Any,
) -> pd.DataFrame:
    settings = {"batch_size": 10, "learning_rate": 0.002, "patience": 50}
    params = write_params(folder / "params.yaml", scst=settings | changes)
    model, history = folder / "captioner.safetensors", folder / "scst.csv"
    scst(
        trained,
        tiny.features,
        captions or tiny.table,
        model,
        history,
        load_params(params, ScstConfig),
    )
    return pd.read_csv(history)


@pytest.fixture(scope="module")
def trained(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned something, and not yet everything."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {"epochs": 12, "hidden_size": 64, "embed_size": 64, "dropout": 0.1}
    config = load_params(write_params(folder / "p.yaml", train=changes), TrainConfig)
    model = folder / "model.safetensors"
    inputs = (tiny.features, tiny.table, tiny.vocabulary)
    train(*inputs, model, folder / "history.csv", config)
    return model


def train_as_val(tiny: Artifacts, folder: Path) -> Path:
    """The val split is too small to tell here: the training images stand in for it."""
    table = pd.read_csv(tiny.table, dtype=str, keep_default_na=False)
    training = table[table["split"] == "train"]
    both = pd.concat([training, training.assign(split="val")]).to_csv(index=False)
    return tiny.with_table(folder, both)


def test_the_score_of_its_own_captions_rises_and_the_best_epoch_is_kept(
    tiny: Artifacts, trained: Path, tmp_path: Path
) -> None:
    history = run(tiny, trained, tmp_path, captions=train_as_val(tiny, tmp_path), epochs=8)
    assert history["epoch"].tolist() == list(range(9))
    assert history["reward"].iloc[-1] > 1.1 * history["reward"].iloc[1]
    assert (tmp_path / "captioner.safetensors").read_bytes() != trained.read_bytes()
    assert history["cider"].max() > history["cider"].iloc[0]


def test_bleu_counts_in_the_reward_as_often_as_params_say(
    tiny: Artifacts, trained: Path, tmp_path: Path
) -> None:
    """Of the captions of one step, which are drawn alike whatever is made of them."""
    rewards = []
    for bleu in (0.0, 1.0, 3.0):
        history = run(tiny, trained, tmp_path, epochs=1, batch_size=1000, bleu_weight=bleu)
        rewards.append(history["reward"].iloc[1])
    assert 1 < rewards[1] - rewards[0] < 100
    assert rewards[2] - rewards[0] == pytest.approx(3 * (rewards[1] - rewards[0]), rel=1e-4)


def test_the_same_bytes_every_time(tiny: Artifacts, trained: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tiny, trained, tmp_path / name, epochs=2)
    for name in ("captioner.safetensors", "scst.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_no_epochs_leave_the_model_as_it_is(tiny: Artifacts, tmp_path: Path) -> None:
    history = run(tiny, tiny.trained, tmp_path, epochs=0)
    assert history["epoch"].tolist() == [0]
    assert (tmp_path / "captioner.safetensors").read_bytes() == tiny.trained.read_bytes()


def test_an_epoch_that_makes_it_worse_is_not_kept(
    tiny: Artifacts, trained: Path, tmp_path: Path
) -> None:
    history = run(tiny, trained, tmp_path, epochs=2, learning_rate=1.0, cross_entropy_weight=0.0)
    assert history["cider"].iloc[1:].max() < history["cider"].iloc[0]
    assert (tmp_path / "captioner.safetensors").read_bytes() == trained.read_bytes()


class BadGradient(torch.autograd.Function):
    """A finite value whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run(
    tiny: Artifacts, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*arguments: Any) -> torch.Tensor:
        likely = log_probabilities(*arguments)
        return likely * float("nan") if where == "loss" else BadGradient.apply(likely)

    monkeypatch.setattr(policy, "log_probabilities", broken)
    with pytest.raises(InputError, match=r"is no longer finite in epoch 1, by step 1, .*scst\."):
        run(tiny, trained, tmp_path, epochs=1)
    assert (tmp_path / "captioner.safetensors").read_bytes() == trained.read_bytes()


def test_an_average_of_the_weights_is_kept_where_there_is_one(
    tiny: Artifacts, trained: Path, tmp_path: Path
) -> None:
    """The steps are the same, and what is kept of them is not."""
    kept, rewards = [], []
    for ema in (0.0, 0.99):
        (folder := tmp_path / str(ema)).mkdir()
        history = run(
            tiny, trained, folder, captions=train_as_val(tiny, folder), epochs=2, ema_decay=ema
        )
        rewards.append(history["reward"].tolist()[1:])
        kept.append(load_file(folder / "captioner.safetensors"))
    assert rewards[0] == rewards[1]
    plain, averaged = kept
    assert any(not torch.equal(averaged[name], one) for name, one in plain.items())


def test_dropout_is_in_the_gradient_and_not_in_what_is_drawn(
    tiny: Artifacts, trained: Path, tmp_path: Path
) -> None:
    """So the first step's captions are the same, and the gradient is not."""
    rewards = []
    for dropout in (False, True):
        folder = tmp_path / str(dropout)
        folder.mkdir()
        captions = train_as_val(tiny, folder)
        history = run(
            tiny,
            trained,
            folder,
            captions,
            epochs=2,
            batch_size=40,
            use_dropout=dropout,
            patience=2,
        )
        rewards.append(history["reward"].tolist())
    assert rewards[0][1] == rewards[1][1]
    assert rewards[0][2] != rewards[1][2]
