"""Files of someone who means harm: one line, in little time and memory, and nothing done."""

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
from pipeline.config.schema import PrepareConfig, VocabConfig
from pipeline.images.archive import ImageArchive, decode_image
from pipeline.runtime.errors import InputError
from pipeline.sources.flickr8k import KAGGLE, TOKENS, read_text_archive
from pipeline.stages.prepare import prepare
from tests.conftest import ROOT, command, make_zip, one_line, params, write_params


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "JPEG")
    return content.getvalue()


def test_a_text_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    """A few hundred kilobytes on the disk; memory stays what it is without it."""
    bomb = tmp_path / "text.zip"
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(KAGGLE, "w") as member,
    ):
        for _ in range(5):
            member.write(b"a" * (16 << 20))
    limited = (
        "import resource; from pipeline.cli import main; import sys;"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); main()"
    )
    arguments = ["prepare", "--text", bomb, "--captions", tmp_path / "c.csv"]
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
    ("line", "said"),
    [
        ("a.jpg#0\t" + "word " * 3000, "line 1: a caption of 15000 characters, more than 10000"),
        ("\x1b[2J.jpg#0\tA dog", "may not be called '\\x1b[2J.jpg'"),
        ("=cmd|calc.jpg#0\tA dog", "may not be called '=cmd|calc.jpg'"),
        ("a\u202egpj.exe#0\tA dog", "may not be called"),
        ("a" * 60_000 + ".jpg#0\tA dog", "255 bytes may do"),
        ("a.jpg#0\t" + "word " * 20_000, "line 1: more than 65536 bytes"),
        ("\n" * 1_000_000, "has more than 1000000 lines"),
    ],
)
def test_captions_and_ids_that_would_do_harm_are_refused(
    tmp_path: Path, line: str, said: str
) -> None:
    archive = make_zip(tmp_path / "text.zip", {TOKENS: line + "\n"})
    with pytest.raises(InputError) as error:
        read_text_archive(archive)
    assert said in str(error.value)


def test_no_caption_is_a_formula_to_a_spreadsheet(tmp_path: Path) -> None:
    captions = ["=1+1", "+a", "-b", "@c", "'=d", "\tx", "plain", "'quoted'"]
    tokens = "".join(f"a.jpg#{i}\t{one}\nb.jpg#{i}\ty\n" for i, one in enumerate(captions))
    lists = {
        f"Flickr_8k.{name}Images.txt": f"{one}.jpg\n"
        for name, one in (("train", "a"), ("dev", "b"), ("test", "c"))
    }
    text = make_zip(tmp_path / "text.zip", {TOKENS: tokens + "c.jpg#0\tz\n", **lists})
    table = tmp_path / "captions.csv"
    prepare(text, table, PrepareConfig(val_fraction=0.1, test_fraction=0.1))
    cells = [cell for line in table.read_text().splitlines() for cell in line.split(",")]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    read = read_table(table).rows
    assert read["caption"][read["image_id"] == "a.jpg"].tolist() == captions


def test_names_in_a_zip_lead_nowhere_and_links_are_no_images(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../../up.jpg", "/etc/root.jpg", "C:\\win.jpg"):
            archive.writestr(name, jpeg())
        archive.writestr(link, "/etc/passwd")
        archive.writestr(zipfile.ZipInfo("/"), b"")
    with ImageArchive(path) as images:
        assert {"up.jpg", "root.jpg", "link.jpg"} <= set(images.ids)
        decode_image(images.content("up.jpg"), "up.jpg")
        with pytest.raises(InputError, match="is no image"):
            decode_image(images.content("link.jpg"), "link.jpg")
    assert list(tmp_path.iterdir()) == [path]


def test_an_encrypted_member_is_said(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "images.zip", {"a.jpg": jpeg()})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # in the member's own header,
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(content)
    with ImageArchive(path) as images, pytest.raises(InputError, match=r"a\.jpg.*encrypted"):
        images.content("a.jpg")


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript run what an EPS says, whatever the file is called."""
    stub, ran = tmp_path / "gs", tmp_path / "ran"
    stub.write_text(f"#!/bin/sh\ntouch {ran}\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # where Pillow found it before
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "EPS")
    with pytest.raises(InputError, match=r"not read \(JPEG PNG GIF BMP PPM TIFF WEBP are\)"):
        decode_image(content.getvalue(), "a.jpg")
    assert not ran.exists()


def test_a_transparent_image_is_held_little_more_than_once(tmp_path: Path) -> None:
    image, side = tmp_path / "a.png", 6000
    Image.new("RGBA", (side, side), (255, 0, 0, 128)).save(image)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from pipeline.images.archive import decode_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "content = Path(sys.argv[1]).read_bytes(); before = peak()\n"
        "assert decode_image(content, 'a.png').getpixel((0, 0)) == (255, 127, 127)\n"
        "print(peak() - before)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, image], cwd=ROOT, capture_output=True, check=True
    )
    assert int(said.stdout) < 2.5 * 4 * side * side  # Pillow has four bytes a pixel: two, no more


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (100_000, 100_000, "is 100000 x 100000, more than 200 megapixels"),
        (20_000, 1, "is 20000 x 1, one side more than 50 times the other"),
        (2, 101, "is 2 x 101, one side more than 50 times the other"),
    ],
)
def test_an_image_that_would_become_gigabytes_is_not_decoded(
    width: int, height: int, said: str
) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    png = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with pytest.raises(InputError, match=said):
        decode_image(png, "lie.png")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Readers differ in which of the two they take."""
    path = tmp_path / "text.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(TOKENS, "a.jpg#0\tA dog\n")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(TOKENS, "a.jpg#0\tA cat\n")
    with pytest.raises(InputError, match=f"holds two files {TOKENS}"):
        read_text_archive(path)


INTEGERS = [
    *((group, key) for group, keys in params().items() for key in keys if type(keys[key]) is int),
    *(("extract", key) for key in ("cells", "batch_size", "workers")),
]


@pytest.mark.parametrize(("group", "key"), INTEGERS)
def test_a_number_that_is_too_large_is_refused(tmp_path: Path, group: str, key: str) -> None:
    path = write_params(tmp_path / "params.yaml", **{group: {key: 10**400}})
    with pytest.raises(InputError, match=rf"{group}\.{key} is 1"):
        load_params(path, VocabConfig)


def test_params_that_name_themselves_over_and_over_are_one_short_line(tmp_path: Path) -> None:
    """Nine lines of YAML that would be 10^9 words."""
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    text = write_params(tmp_path / "params.yaml").read_text()
    text = text.replace("  beam_size: 2", "  beam_size: *a8")
    (tmp_path / "params.yaml").write_text("\n".join(bomb) + "\n" + text)
    done = command("vocab", "--params", tmp_path / "params.yaml", *OPTIONS)
    assert len(one_line(done)) < 500


OPTIONS = ("--captions", "c", "--out", "o")


def test_a_terminal_is_not_steered_by_a_name(tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[2J\u202e.yaml"
    line = one_line(command("vocab", "--params", odd, *OPTIONS))
    assert "does not exist" in line
    assert "\x1b" not in line
    assert "\u202e" not in line
