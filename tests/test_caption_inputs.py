"""`showtell caption`: files, folders, patterns, standard input and addresses, good and bad."""

import functools
import io
import sys
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from pipeline.captioning.captioner import Captioner
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.runtime.device import resolve_device
from tests.conftest import SHARED, Artifacts, command, one_line
from tests.helpers.captions import caption

CASES = SHARED / "cases"

pytest_plugins = ["tests.helpers.captions"]


def test_a_bad_image_does_not_stop_the_others(tiny: Artifacts, photos: Path) -> None:
    (photos / "0.jpg").write_text("no image")
    result = command(*caption(tiny, photos))
    assert "0.jpg is not an image" in one_line(result)
    assert len(result.stdout.splitlines()) == 12


def test_a_photo_of_gigabytes_is_not_read(tiny: Artifacts, tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as sparse:
        sparse.truncate(4 << 30)
    line = one_line(command(*caption(tiny, tmp_path / "huge.jpg")))
    assert "huge.jpg has 4294967296 bytes, more than 134217728; make it smaller" in line


def test_odd_kinds_of_images_are_captioned(tiny: Artifacts, tmp_path: Path) -> None:
    files = []
    for mode, suffix in (("L", "png"), ("CMYK", "jpg"), ("P", "gif"), ("RGBA", "webp")):
        files.append(tmp_path / f"{mode}.{suffix}")
        Image.new("RGB", (33, 200), "green").convert(mode).save(files[-1])
    captioner = Captioner(tiny.backbone, [tiny.model], resolve_device("cpu"))
    assert all(made.text for made in captioner.caption(files, BeamSearchConfig()))


def test_a_folder_is_read_with_its_subfolders_and_files_left_out_are_named(
    tiny: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.JPG", "deep/er/a.ppm", ".thumbnails/c.png", "x.jfif", ".d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {".ppm": "PPM", ".png": "PNG"}.get(Path(name).suffix, "JPEG")
        Image.new("RGB", (20, 20), "red").save(tmp_path / name, kind)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"ftypheic")
    (tmp_path / "deep/notes.txt").write_text("notes")
    result = command(*caption(tiny, tmp_path))
    assert result.returncode == 0, result.stderr
    said = [Path(line.split("\t")[0]) for line in result.stdout.splitlines()]
    assert said == [tmp_path / name for name in ("b.JPG", "deep/er/a.ppm", "x.jfif")]
    assert f"skipped in {tmp_path}: 2 files of unsupported formats" in result.stderr
    assert "'IMG_1.HEIC', 'deep/notes.txt'" in result.stderr


def test_an_image_with_a_faulty_exif_is_captioned_and_named(
    tiny: Artifacts, tmp_path: Path
) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"  # five entries, it says, and breaks off
    Image.new("RGB", (30, 20), "red").save(tmp_path / "odd.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none is shown as Pillow has it
        result = command(*caption(tiny, tmp_path / "odd.jpg"))
    assert result.returncode == 0, result.stderr
    (line,) = (one for one in result.stderr.splitlines() if "odd.jpg" in one)
    assert "odd.jpg has a fault but can be read: " in line


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_the_photos_of_the_cases(tiny: Artifacts) -> None:
    result = command(*caption(tiny, CASES / "photos_folder"))
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 4
    assert "'IMG_1.HEIC', 'svg.svg'" in result.stderr
    result = command(*caption(tiny, CASES / "pictures"))
    assert len(result.stdout.splitlines()) == 4
    assert "badexif.jpg has a fault" in result.stderr


def test_a_pattern_stands_for_what_matches_and_a_missing_file_does_not_stop_the_others(
    tiny: Artifacts, photos: Path, tmp_path: Path
) -> None:
    result = command(*caption(tiny, "nowhere.jpg", str(photos / "*[0-4]*.jpg"), photos))
    assert result.returncode == 1
    assert "nowhere.jpg does not exist" in one_line(result)
    lines = result.stdout.splitlines()
    assert len(lines) == len(set(lines)) == 12  # each image once


def test_standard_input_is_an_image(
    tiny: Artifacts, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photo, *_) = sorted(photos.iterdir())
    expected = command(*caption(tiny, photo)).stdout.split("\t")[1:]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    assert command(*caption(tiny, "-")).stdout.split("\t") == ["-", *expected]


def test_an_address_is_fetched(tiny: Artifacts, photos: Path) -> None:
    (photo, *_) = sorted(photos.iterdir())
    handler = functools.partial(SimpleHTTPRequestHandler, directory=photos)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        result = command(*caption(tiny, f"{address}/{photo.name}", f"{address}/none.jpg", photo))
        server.shutdown()
    fetched, local = (line.split("\t")[1:] for line in result.stdout.splitlines())
    assert fetched == local
    assert f"{address}/none.jpg cannot be fetched: HTTP 404" in one_line(result)
