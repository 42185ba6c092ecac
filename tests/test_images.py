"""Decoding image files to RGB, and the errors of those that cannot be decoded."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.extraction.preprocess import decode
from pipeline.runtime.errors import InputError
from tests.conftest import SHARED
from tests.helpers.images import jpeg, scene

CASES = SHARED / "cases/pictures"


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "LA", "YCbCr", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 32896, np.uint16))
        assert decode(jpeg(image, format="PNG"), "x")[0, 0].tolist() == [128, 128, 128]
        return
    kind = {"RGBA": "PNG", "P": "GIF", "1": "PNG", "LA": "PNG"}.get(mode, "JPEG")
    image = decode(jpeg(scene(mode), format=kind), "x")
    assert image.shape == (60, 90, 3)
    left, right = image[30, 10], image[30, 80]
    if mode in ("CMYK", "P", "RGBA", "YCbCr"):
        assert left[0] > 200 > 60 > left[2]
        assert right[2] > 200 > 60 > right[0]


def test_transparency_is_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(jpeg(image, format="PNG"), "x")[0, 0].tolist() == [255, 255, 255]


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise for display
    image = decode(jpeg(scene(), exif=exif), "x")
    assert image.shape == (90, 60, 3)
    assert image[10, 30, 0] > 200  # red is on top


def png(bits: int, rows: bytes, transparent: bytes, colour: int = 0) -> bytes:
    """A PNG of one row of two pixels, with `bits` bits per channel and a transparent level."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        data = kind + content
        return struct.pack(">I", len(content)) + data + struct.pack(">I", zlib.crc32(data))

    header = struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, content)
        for kind, content in (
            (b"IHDR", header),
            (b"tRNS", transparent),
            (b"IDAT", zlib.compress(b"\0" + rows)),
            (b"IEND", b""),
        )
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(16, b"\x30\x30\x75\x30", b"\x75\x30"), [48, 255]),
        (png(16, b"\x75\x31\x75\x30", b"\x75\x30"), [116, 255]),  # all 16 bits count
        (png(8, b"\x30\x75", b"\0\x75"), [48, 255]),
        (png(4, b"\x35", b"\0\x05"), [51, 255]),
        (png(2, b"\x10", b"\0\x01"), [0, 255]),
        (png(1, b"\x40", b"\0\x00"), [255, 255]),
        (png(16, b"\x30\x00" * 3 + b"\x75\x30" * 3, b"\x75\x30" * 3, colour=2), [48, 255]),
    ],
    ids=["16", "16 near", "8", "4", "2", "1", "16 rgb"],
)
def test_a_transparent_level_has_the_bit_depth_of_its_image(
    content: bytes, expected: list[int]
) -> None:
    assert decode(content, "x")[0, :, 0].tolist() == expected


def tiff(*values: float, dtype: type = np.float32) -> bytes:
    """A TIFF with these pixel values."""
    return jpeg(Image.fromarray(np.array([values], dtype=dtype)), format="TIFF")


@pytest.mark.parametrize(
    "content",
    [
        tiff(0, 0.2, 1),
        tiff(0, 13107, 65535, dtype=np.uint16),
        b"P5 3 1 65535\n" + bytes.fromhex("0000 3333 ffff"),
        b"P5 3 1 1000\n" + bytes.fromhex("0000 00c8 03e8"),
    ],
    ids=["floats", "16 bits", "PGM of 16 bits", "PGM to 1000"],
)
def test_pixel_values_of_a_known_range_are_scaled(content: bytes) -> None:
    shades = decode(content, "x")[0, :, 0]
    assert (shades - torch.tensor([0, 51, 255], dtype=torch.int16)).abs().max() <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(0, 255), "pixel values from 0 to 255, and the value of white is unknown"),
        (tiff(-0.5, 1), "pixel values from -0.5 to 1"),
        (tiff(0.5, float("nan")), "pixel values from nan to nan"),
        (tiff(0, 255, dtype=np.int32), "values from 0 to 255.* save it with 8 bits per channel"),
        (tiff(-1, 70, dtype=np.int16), "pixel values from -1 to 70"),
    ],
)
def test_pixel_values_of_an_unknown_range_are_rejected_not_clipped(
    content: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        decode(content, "x")


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases/pictures")
@pytest.mark.parametrize("name", ["float01.tif", "grey16_trns.png", "badexif.jpg", "noeoi.jpg"])
def test_odd_images_of_the_cases_are_decoded(name: str) -> None:
    shades = decode((CASES / name).read_bytes(), name).float()
    assert shades.shape == (80, 120, 3)
    assert 60 < shades.mean() < 200
    assert shades.std() > 20


def test_a_jpeg_that_lacks_only_its_end_marker_is_decoded(caplog: pytest.LogCaptureFixture) -> None:
    for options in ({}, {"progressive": True}):
        whole = jpeg(scene().rotate(30), **options)
        assert torch.equal(decode(whole[:-2], "x.jpg"), decode(whole, "x.jpg"))
        assert "the image x.jpg has no end marker" in caplog.text
        last_scan = whole.rindex(b"\xff\xda")
        for truncated in (whole[:-8], whole[:-40], whole[:-200], whole[:last_scan]):
            with pytest.raises(InputError, match="cannot be decoded"):
                decode(truncated, "x.jpg")
