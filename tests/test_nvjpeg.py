"""The JPEGs that nvJPEG may decode: those that it decodes as Pillow does."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.extraction.nvjpeg import is_plain_jpeg
from pipeline.runtime.errors import InputError
from pipeline.stages.extract import extract
from tests.conftest import Artifacts, write_params


def encoded(mode: str = "RGB", size: tuple[int, int] = (40, 30), **settings: Any) -> bytes:
    file = io.BytesIO()
    kind = settings.pop("format", "JPEG")
    Image.new(mode, size, 90 if mode == "L" else None).save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize(
    "content", [encoded(), encoded(progressive=True), encoded(quality=30), encoded(comment="hello")]
)
def test_plain_jpegs_are_decoded_by_nvjpeg(content: bytes) -> None:
    assert is_plain_jpeg(content)
    assert is_plain_jpeg(content + b"\0\0")  # some cameras add padding


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8",
        encoded(format="PNG"),
        encoded("L"),
        encoded("CMYK"),
        encoded(exif=exif(6)),
        encoded(size=(2000, 20)),
        encoded()[:-2],
        encoded()[:200],
        encoded()[:20] + b"\0" * 100 + b"\xff\xd9",
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xd9",
    ],
    ids=[
        "empty",
        "start marker only",
        "png",
        "grey",
        "cmyk",
        "rotated",
        "thin",
        "no end marker",
        "truncated",
        "zeros",
        "truncated frame header",
    ],
)
def test_all_others_are_decoded_by_pillow(content: bytes) -> None:
    assert not is_plain_jpeg(content)


def test_without_a_gpu_pillow_decodes_and_the_recipe_records_it(
    tiny: Artifacts, tmp_path: Path
) -> None:
    assert read_features(tiny.features).recipe.jpeg_decoder == "pillow"
    params = write_params(tmp_path / "params.yaml", extract={"jpeg_decoder": "nvjpeg"})
    with pytest.raises(InputError, match=r"extract\.jpeg_decoder is 'nvjpeg'.*set it to auto"):
        extract(
            tiny.images,
            tiny.unreadable,
            tiny.backbone,
            tmp_path / "f.h5",
            load_params(params, ExtractConfig),
        )
    assert not (tmp_path / "f.h5").exists()
