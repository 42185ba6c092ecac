"""`import showtell`: the captioner in four lines."""

import doctest
import io
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import showtell
from tests.conftest import Artifacts, command


@pytest.fixture
def photos(tiny: Artifacts, tmp_path: Path) -> list[Path]:
    shutil.unpack_archive(tiny.images, tmp_path / "photos", "zip")
    return sorted((tmp_path / "photos").rglob("*.jpg"))[:3]


def test_it_captions_as_the_command_does(tiny: Artifacts, photos: list[Path]) -> None:
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    options = ("--model", tiny.model, "--backbone", tiny.backbone, "--device", "cpu")
    lines = command("caption", *options, *photos).stdout.splitlines()
    assert [str(one) for one in captioner.caption(photos)] == [
        line.split("\t")[1] for line in lines
    ]


def test_a_path_and_the_content_of_a_file_are_one_image(
    tiny: Artifacts, photos: list[Path]
) -> None:
    captioner = showtell.load(str(tiny.folder / "models"), device="cpu")
    content = photos[0].read_bytes()
    with Image.open(photos[0]) as opened, photos[0].open("rb") as file:
        forms = [photos[0], str(photos[0]), content, opened, np.array(opened)]
        batch = captioner.caption([*forms, io.BytesIO(content)])
        # A file is one image, not an iterable of lines.
        alone = [captioner.caption(form) for form in (*forms, file)]
    assert len({(one.text, one.score) for one in alone}) == 1
    assert [one.text for one in batch] == [one.text for one in alone]
    # Some processors round the products of a batch differently (docs/reliability.md).
    assert [one.score for one in batch] == pytest.approx([one.score for one in alone], rel=1e-6)
    greedy = showtell.BeamSearchConfig(beam_size=1, max_length=2)
    assert len(captioner.caption(photos[0], greedy).tokens) <= 2


def test_the_examples_of_its_documentation_are_true(
    tiny: Artifacts, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "doc"
    (folder / "photos").mkdir(parents=True)
    (folder / "models").symlink_to(tiny.folder / "models")
    shutil.copy(photos[0], folder / "photo.jpg")
    for photo in photos[:2]:
        shutil.copy(photo, folder / "photos")
    monkeypatch.chdir(folder)
    failed, tried = doctest.testmod(showtell)
    assert (failed, tried > 8) == (0, True)


def test_threads_share_a_captioner(tiny: Artifacts, photos: list[Path]) -> None:
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    expected = [captioner.caption(photo).text for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda photo: captioner.caption(photo).text, photos * 4))
        streams = list(pool.map(lambda _: captioner.caption(photos * 5), range(4)))
    assert together == expected * 4
    for captions in streams:
        assert [one.text for one in captions] == expected * 5


def test_a_generator_is_read_a_few_batches_ahead(tiny: Artifacts, photos: list[Path]) -> None:
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    read = 0

    def endless() -> Iterator[Path]:
        nonlocal read
        while True:
            read += 1
            yield photos[read % 3]

    stream = captioner.stream(endless())
    captions = [next(stream) for _ in range(100)]
    stream.close()
    assert all(captions)
    assert read < 200


def test_what_is_not_an_image_is_named(tiny: Artifacts, photos: list[Path]) -> None:
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    for wrong, said in (
        (np.zeros((4, 4, 3)), r"float64 \(4, 4, 3\), but must be uint8 \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "is empty"),
        (Image.new("RGB", (1000, 2)), "1000 x 2, one side more than 50 times"),
    ):
        with pytest.raises(showtell.InputError, match=said):
            captioner.caption(wrong)
    outcomes = list(captioner.stream([photos[0], b"text", 7, photos[1]], errors="return"))
    assert [isinstance(one, showtell.Caption) for one in outcomes] == [True, False, False, True]
    assert "is of the type int; give a path" in str(outcomes[2])
    with pytest.raises(showtell.InputError, match=r"^the image is empty"):
        captioner.caption(b"")
    with pytest.raises(showtell.InputError, match=r"^the image is not an image"):
        captioner.caption([photos[0], b"text"])


def test_alternatives_are_different_captions_the_best_first(
    tiny: Artifacts, photos: list[Path]
) -> None:
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    alike = replace(captioner.search, beam_size=6, beam_groups=3, diversity_penalty=0.0)
    for alternatives in (2, 5):  # of groups that all find the same
        caption = captioner.caption(photos[0], alike, alternatives=alternatives)
        found = [caption, *caption.alternatives]
        assert len(found) == len({one.tokens for one in found}) == (1 if alternatives == 2 else 2)
        assert found == sorted(found, key=lambda one: -(one.score or 0))


def test_wrong_arguments_are_refused_at_once(tiny: Artifacts, photos: list[Path]) -> None:
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    assert repr(captioner).startswith("<Captioner: show_and_tell on shufflenet_v2_x0_5")
    with pytest.raises(ValueError, match="alternatives must be 0 or more, not -1"):
        captioner.caption(photos[0], alternatives=-1)
    with pytest.raises(ValueError, match="errors must be 'raise' or 'return', not 'ignore'"):
        captioner.stream(photos, errors="ignore")  # type: ignore[call-overload]
    with pytest.raises(showtell.InputError, match="the device is 'tpu', but must be auto, cpu"):
        showtell.load(tiny.folder / "models", device="tpu")  # type: ignore[arg-type]
    with photos[0].open(errors="replace") as text, pytest.raises(showtell.InputError, match="'rb'"):
        captioner.caption(text)  # type: ignore[arg-type]


def test_a_missing_model_and_a_bad_image_are_reported(tiny: Artifacts, tmp_path: Path) -> None:
    for wrong, said in (
        (tmp_path, r"is neither .* it has no config\.json and no captioner\.safetensors$"),
        (tmp_path / "none", r"none does not exist; name a folder that 'dvc repro' or 'showtell"),
        (tiny.model, "is a file; name its folder"),
    ):
        with pytest.raises(showtell.InputError, match=said):
            showtell.load(wrong)
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    with pytest.raises(
        showtell.InputError, match="the image is not an image of a supported format"
    ):
        captioner.caption(b"text")
