"""`showtell attention`: which parts of a photo each word of its caption comes from."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from pipeline.captioning.caption import Caption
from pipeline.captioning.captioner import Captioner
from pipeline.captioning.occlusion import occlusion_map, token_log_probs
from pipeline.captions.vocabulary import SPECIAL, START, Vocabulary
from pipeline.commands.attention import crop
from pipeline.commands.word_maps import NOTES, WordMaps, frames, light_up, panels
from pipeline.decoders.decoder import DecoderState
from pipeline.evaluation.ensemble import Ensemble
from pipeline.features.recipe import FeatureRecipe, Preprocessing, View
from tests.conftest import Artifacts, command, one_line
from tests.test_decoder import GRID, decoder
from tests.test_ensemble import paths  # noqa: F401, a fixture: an attention model of the tiny data

PRE = Preprocessing(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def recipe(pre: Preprocessing = PRE, crop_mode: str = "squash") -> FeatureRecipe:
    view = View("cnn", "w", "0", pre)
    return FeatureRecipe("pooled", "mean", cast(Any, crop_mode), False, None, (view,), "pillow")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image = Image.new("RGB", (80, 60), "green")
    image.paste("navy", (10, 10, 40, 40))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def count_panels(path: Path, width: int, height: int) -> int:
    """Rectangles of this size on the white sheet."""
    with Image.open(path) as sheet:
        drawn = np.pad((np.asarray(sheet) != 255).any(axis=2), 1)
    corners = drawn[1:, 1:] & ~drawn[:-1, 1:] & ~drawn[1:, :-1]
    places = np.argwhere(corners) + 1
    return sum(bool(drawn[y : y + height, x : x + width].all()) for y, x in places)


def rows(stdout: str) -> list[list[str]]:
    return [line.split("\t") for line in stdout.splitlines()]


class CornerDecoder:
    """Says `bright` if the upper left corner is, the more likely the brighter; `a` regardless."""

    def init_state(self, features: Tensor) -> DecoderState:  # (P, 1)
        return DecoderState((), (features,))

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        (corner,) = state.hidden
        logits = torch.zeros(len(corner), 6)
        logits[:, 5] = torch.where(token_ids == START, 0.0, corner[:, 0])
        return logits, state


def corner_captioner() -> Captioner:
    """Its feature is the brightness of the upper left eighth, each way."""
    fake = SimpleNamespace(
        decoder=CornerDecoder(),
        vocabulary=Vocabulary((*SPECIAL, "a", "bright")),
        recipe=recipe(),
        device=torch.device("cpu"),
        features=lambda images: torch.stack(
            [pixels[:8, :8].float().mean().view(1) / 64 for (pixels,) in images]
        ),
    )
    return cast(Captioner, fake)


def test_an_occlusion_map_is_bright_only_where_covering_makes_the_word_less_likely() -> None:
    white = torch.full((64, 64, 3), 255, dtype=torch.uint8)
    a, bright = occlusion_map(corner_captioner(), (white,), ["a", "bright"])
    assert np.abs(a).max() == 0  # it never depends on the photo
    # The one patch that hides the corner covers 2 x 2 cells; the corner is under no other.
    assert bright[0, 0] == bright.max() > 0.1
    assert (bright[0, 0], bright[0, 0] / 2, bright[0, 0] / 4) == pytest.approx(
        (bright[0, 0], bright[0, 1], bright[1, 1])
    )
    bright[:2, :2] = 0
    assert np.abs(bright).max() == 0


def test_the_log_probabilities_of_a_caption_are_those_of_teacher_forcing() -> None:
    model, features = decoder("spatial_attention").eval(), torch.randn(3, *GRID)
    token_ids = [7, 5, 9]
    given = torch.tensor([[START, *token_ids[:-1]]] * 3)
    with torch.inference_mode():
        stepped = token_log_probs(model, features, token_ids)
        together = token_log_probs(Ensemble([model]), features, token_ids)
        every = model(features, given).log_softmax(-1)
    expected = every[:, range(3), token_ids]
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)


def test_a_model_of_grids_draws_attention_in_every_format_and_the_same_bytes_again(
    tiny: Artifacts,
    paths: dict[str, Path],  # noqa: F811
    photo: Path,
    tmp_path: Path,
) -> None:
    drawn = []
    for out in (tmp_path / "once", tmp_path / "again"):
        done = command(
            *("attention", photo, "--out-dir", out, "--format", "all"),
            *("--backbone", tiny.backbone, "--model", paths["attention"]),
        )
        assert done.returncode == 0, done.stderr
        files = [Path(path) for path, *_ in rows(done.stdout)]
        assert [path.name for path in files] == [
            f"photo.png.attention.{suffix}" for suffix in ("png", "webp", "gif")
        ]
        drawn.append([path.read_bytes() for path in files])
    assert drawn[0] == drawn[1]
    assert {kind for _, _, kind in rows(done.stdout)} == {"attention"}
    words = rows(done.stdout)[0][1].split()
    assert count_panels(files[0], width=240, height=180) == 1 + len(words)
    for path in files[1:]:  # a frame a word, then the whole caption
        with Image.open(path) as animation:
            assert animation.width <= 600
            assert animation.info["loop"] == 0
            stay = []
            for frame in ImageSequence.Iterator(animation):
                frame.load()  # a WebP tells it then
                stay.append(frame.info["duration"])
        assert stay == [700] * len(words) + [2000]


def test_a_model_without_a_grid_and_an_ensemble_draw_occlusion_and_say_so(
    tiny: Artifacts,
    paths: dict[str, Path],  # noqa: F811
    photo: Path,
    tmp_path: Path,
) -> None:
    pooled = ("--model", tiny.model)
    ensemble = ("--model", paths["attention"], *pooled)
    forced = ("--model", paths["attention"], "--occlusion")
    for models in (pooled, ensemble, forced):
        done = command("attention", photo, "--backbone", tiny.backbone, *models, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        ((path, words, kind),) = rows(done.stdout)
        assert (path, kind) == ("occlusion/photo.png.occlusion.png", "occlusion")
        assert count_panels(tmp_path / path, width=240, height=180) == 1 + len(words.split())
    assert not (tmp_path / "attention").exists()


def test_an_unknown_format_is_refused(tiny: Artifacts, photo: Path) -> None:
    done = command("attention", photo, "--model", tiny.model, "--format", "mp4")
    assert "must be one of png, webp, gif, all" in one_line(done)


def maps(
    kind: Any = "attention", words: str = "a red square", size: tuple[int, int] = (90, 60)
) -> WordMaps:
    tokens = tuple(words.split())
    caption = Caption(words, tokens, token_probs=(0.5,) * len(tokens), confidence=0.7)
    strengths = np.zeros((len(tokens), 4, 4), np.float32)
    strengths[:, 0, 0] = 1
    return WordMaps(kind, Image.new("RGB", size, (120, 120, 120)), caption, strengths)


def test_each_drawing_is_labelled_with_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    draw = "PIL.ImageDraw.ImageDraw.text"
    monkeypatch.setattr(draw, lambda self, at, text, *rest: written.append(text))
    for kind, other in (("attention", "occlusion"), ("occlusion", "attention")):
        written.clear()
        panels(maps(kind))
        assert written[:8] == ["photo", "", "a", "50%", "red", "50%", "square", "50%"]
        assert "a red square" in written
        drawn = frames(maps(kind), 480)
        assert written.count(f"{NOTES[kind]}  ·  confidence 70%") == 1 + len(drawn)
        assert not any(other in text for text in written)


def test_words_appear_in_turn_and_the_last_frame_is_the_photo_as_it_is() -> None:
    drawn = [np.asarray(frame) for frame in frames(maps(), 480)]
    assert len(drawn) == 4
    assert all((one != next_one).any() for one, next_one in pairwise(drawn))
    assert (drawn[-1][:320] == 120).all()
    assert not (drawn[0][:320] == 120).all()


@pytest.mark.parametrize("shade", [8, 128, 247])
def test_what_lights_up_stands_out_on_dark_and_light_photos(shade: int) -> None:
    strength = np.zeros((2, 2), np.float32)
    strength[0, 0] = 1
    lit = np.asarray(light_up(Image.new("RGB", (40, 40), (shade,) * 3), strength)).astype(int)
    assert lit[0, 0].sum() - lit[-1, -1].sum() > 90


@pytest.mark.parametrize("size", [(3000, 60), (60, 3000), (1, 1)])
@pytest.mark.parametrize("words", ["a", "Donaudampfschifffahrtsgesellschaftskapitän " * 20])
def test_odd_photos_and_long_captions_are_drawn(size: tuple[int, int], words: str) -> None:
    odd = maps(words=words, size=size)
    assert panels(odd).width >= 480
    assert {frame.width for frame in frames(odd, 480)} == {480}


def test_the_photo_is_drawn_as_far_as_the_cnn_sees_it() -> None:
    wide = Image.new("RGB", (200, 100))
    assert crop(wide, recipe()).size == (200, 100)
    smaller = Preprocessing(80, 64, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert crop(wide, recipe(smaller, "center")).size == (80, 80)  # 64 of 80 pixels a side
