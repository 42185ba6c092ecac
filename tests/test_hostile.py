"""Malicious files: rejected in one line, in little time and memory, without side effects."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from pipeline.captions.table import read_table
from pipeline.config.load import load_params
from pipeline.config.schema import VocabConfig
from pipeline.images.archive import ImageArchive
from pipeline.images.decode import decode_image
from pipeline.runtime.errors import InputError
from pipeline.sources.captions import read_captions
from tests.conftest import ROOT, command, make_zip, one_line, params, write_params
from tests.helpers.datasets import prepare_text


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "JPEG")
    return content.getvalue()


def test_a_text_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    """The zip has a few hundred kilobytes; the process may only use 3 GB."""
    bomb = tmp_path / "text.zip"
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("captions.txt", "w") as member,
    ):
        for _ in range(5):
            member.write(b"a" * (16 << 20))
    limited = (
        "import resource; from pipeline.cli import main; import sys;"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); main()"
    )
    arguments = ["prepare", "--text", bomb, "--captions", tmp_path / "c.csv"]
    arguments += ["--excluded", tmp_path / "e.csv"]
    params = ["--params", write_params(tmp_path / "params.yaml")]
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, [*arguments, *params])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "has 83886080 bytes, more than 67108864; is it a bomb?" in one_line(done)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg#0\t" + "word " * 3000, "line 1: the caption has 15000 characters, more than 10000"),
        ("\x1b[2J.jpg#0\tA dog", "the image name '\\x1b[2J.jpg' is not allowed"),
        ("=cmd|calc.jpg#0\tA dog", "the image name '=cmd|calc.jpg' is not allowed"),
        ("a\u202egpj.exe#0\tA dog", "is not allowed"),
        ("a" * 60_000 + ".jpg#0\tA dog", "is longer than 512 bytes"),
        ("a.jpg#0\t" + "word " * 20_000, "line 1: more than 65536 bytes"),
        ("\n" * 10_000_000, "has more than 10000000 lines"),
    ],
)
def test_harmful_captions_and_ids_are_rejected(tmp_path: Path, line: str, message: str) -> None:
    archive = make_zip(tmp_path / "text.zip", {"Flickr8k.token.txt": line + "\n"})
    with pytest.raises(InputError) as error:
        read_captions(archive)
    assert message in str(error.value)


def test_no_caption_is_a_formula_to_a_spreadsheet(tmp_path: Path) -> None:
    captions = ["=1+1", "+a", "-b", "@c", "'=d", "\tx", "plain", "'quoted'"]
    tokens = "".join(f"a.jpg#{i}\t{text}\nb.jpg#{i}\ty\n" for i, text in enumerate(captions))
    lists = {
        f"Flickr_8k.{split}Images.txt": f"{name}.jpg\n"
        for split, name in (("train", "a"), ("dev", "b"), ("test", "c"))
    }
    members = {"Flickr8k.token.txt": tokens + "c.jpg#0\tz\n", **lists}
    table = prepare_text(tmp_path, members, ["a.jpg", "b.jpg", "c.jpg"])
    cells = [cell for line in table.read_text().splitlines() for cell in line.split(",")]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    rows = read_table(table).rows
    assert rows["caption"][rows["image_id"] == "a.jpg"].tolist() == captions


def test_paths_in_a_zip_are_not_followed_and_links_are_not_images(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../../up.jpg", "/etc/root.jpg", "C:\\win.jpg"):
            archive.writestr(name, jpeg())
        archive.writestr(link, "/etc/passwd")
        archive.writestr(zipfile.ZipInfo("/"), b"")
    with ImageArchive(path) as images:
        assert {"up.jpg", "etc/root.jpg", "C:/win.jpg", "link.jpg"} <= set(images.ids)
        decode_image(images.read("up.jpg"), "up.jpg")
        with pytest.raises(InputError, match="is not an image"):
            decode_image(images.read("link.jpg"), "link.jpg")
    assert list(tmp_path.iterdir()) == [path]


def test_an_encrypted_member_is_reported(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "images.zip", {"a.jpg": jpeg()})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the member's own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    path.write_bytes(content)
    with ImageArchive(path) as images, pytest.raises(InputError, match=r"a\.jpg.*encrypted"):
        images.read("a.jpg")


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an EPS of any name, Pillow would run Ghostscript, which runs programs."""
    stub, ran = tmp_path / "gs", tmp_path / "ran"
    stub.write_text(f"#!/bin/sh\ntouch {ran}\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow's cached path
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "EPS")
    with pytest.raises(InputError, match=r"supported format \(JPEG PNG GIF BMP PPM TIFF WEBP\)"):
        decode_image(content.getvalue(), "a.jpg")
    assert not ran.exists()


def test_a_transparent_image_is_copied_once_at_most(tmp_path: Path) -> None:
    image, side = tmp_path / "a.png", 6000
    Image.new("RGBA", (side, side), (255, 0, 0, 128)).save(image)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from pipeline.images.decode import decode_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "content = Path(sys.argv[1]).read_bytes(); before = peak()\n"
        "assert decode_image(content, 'a.png').getpixel((0, 0)) == (255, 127, 127)\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, image], cwd=ROOT, capture_output=True, check=True
    )
    copy = 4 * side * side  # bytes: Pillow uses four per pixel
    assert int(done.stdout) < 2.5 * copy


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (100_000, 100_000, "is 100000 x 100000, more than 200 megapixels"),
        (20_000, 1, "is 20000 x 1, one side more than 50 times the other"),
        (2, 101, "is 2 x 101, one side more than 50 times the other"),
    ],
)
def test_an_image_that_would_become_gigabytes_is_not_decoded(
    width: int, height: int, message: str
) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    png = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with pytest.raises(InputError, match=message):
        decode_image(png, "lie.png")


def test_a_duplicate_member_is_rejected(tmp_path: Path) -> None:
    """Readers differ in which of the two they use."""
    path = tmp_path / "text.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Flickr8k.token.txt", "a.jpg#0\tA dog\n")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("Flickr8k.token.txt", "a.jpg#0\tA cat\n")
    with pytest.raises(InputError, match=r"has two files 'Flickr8k\.token\.txt'"):
        read_captions(path)


INTEGERS = [
    *((group, key) for group, keys in params().items() for key in keys if type(keys[key]) is int),
    *(("extract", key) for key in ("grid_size", "batch_size", "num_workers")),
]


@pytest.mark.parametrize(("group", "key"), INTEGERS)
def test_too_large_a_number_is_rejected(tmp_path: Path, group: str, key: str) -> None:
    path = write_params(tmp_path / "params.yaml", **{group: {key: 10**400}})
    with pytest.raises(InputError, match=rf"{group}\.{key} is 1"):
        load_params(path, VocabConfig)


def test_an_alias_bomb_in_params_is_one_short_line(tmp_path: Path) -> None:
    """Nine lines of YAML stand for 10^9 strings."""
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    text = write_params(tmp_path / "params.yaml").read_text()
    text = text.replace("  beam_size: 2", "  beam_size: *a8")
    (tmp_path / "params.yaml").write_text("\n".join(bomb) + "\n" + text)
    done = command("vocab", "--params", tmp_path / "params.yaml", *OPTIONS)
    assert len(one_line(done)) < 500


OPTIONS = ("--captions", "c", "--out", "o")


def test_a_name_cannot_control_the_terminal(tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[2J\u202e.yaml"
    line = one_line(command("vocab", "--params", odd, *OPTIONS))
    assert "does not exist" in line
    assert "\x1b" not in line
    assert "\u202e" not in line
