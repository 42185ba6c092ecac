"""`import showtell`: the captioner in four lines."""

import shutil
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
    with Image.open(photos[0]) as opened:
        sources = [photos[0], str(photos[0]), photos[0].read_bytes(), opened, np.array(opened)]
        captions = captioner.caption(sources)
    assert len({one.text for one in captions}) == len({one.score for one in captions}) == 1
    assert captioner.caption(photos[0]).text == captions[0].text
    greedy = showtell.BeamSearchConfig(beam_size=1, max_length=2)
    assert len(captioner.caption(photos[0], greedy).tokens) <= 2


def test_a_missing_model_and_a_bad_image_are_reported(tiny: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(showtell.InputError, match=r"captioner\.safetensors does not exist"):
        showtell.load(tmp_path)
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    with pytest.raises(
        showtell.InputError, match="the image is not an image of a supported format"
    ):
        captioner.caption(b"text")
