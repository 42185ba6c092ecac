"""Users' own data: archives of many kinds are read, or rejected with a helpful line."""

import io
import logging
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.images.archive import ImageArchive
from pipeline.runtime.errors import InputError
from pipeline.sources.captions import read_captions
from pipeline.sources.matching import explain, match
from tests.conftest import SHARED, make_zip
from tests.helpers.datasets import prepare_text, run_download

CASES = SHARED / "cases"


def jpeg(kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "teal").save(file, kind)
    return file.getvalue()


def run(folder: Path, images: Path, text: Path | None = None) -> tuple[list[str], list[str]]:
    """Download and read the captions; return the image ids, and those that have captions."""
    data = run_download(folder, images, text)
    with ImageArchive(data / "images.zip") as archive:
        ids, others = archive.ids, archive.other_files
    matched = match(read_captions(data / "text.zip"), ids, [])
    if matched.excluded:
        raise InputError(explain(matched.excluded, "the archive", ids, others))
    return ids, list(matched.captions)


def captions_of(folder: Path) -> dict[str, list[str]]:
    return read_captions(folder / "data/text.zip").captions


def own(folder: Path, table: str, *names: str, **more: bytes) -> Path:
    """A zip of images with these names and a captions.txt."""
    members: dict[str, bytes | str] = {name: jpeg() for name in names}
    return make_zip(folder / "own.zip", {**members, **more, "captions.txt": table})


def error_of(folder: Path, table: str, *names: str, **more: bytes) -> str:
    with pytest.raises(InputError) as error:
        run(folder, own(folder, table, *names, **more))
    return str(error.value)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,caption", "{name},{caption}"),
        ("image, caption", '{name} , "{caption}" '),
        ("image_name,comment", "{name},{caption}"),
        ("image_name| comment_number| comment", "{name}| 0| {caption}"),
        ("Image;Caption", '{name};"{caption}"'),
        ("id\tfile_name\tcaption", "7\t{name}\t{caption}"),
        ("caption,image", '"{caption}",{name}'),
        ('"image","caption"', '"{name}","{caption}"'),
        ("\ufeff\r\n,image,caption\r", '0,{name},"{caption}"\r'),  # from pandas and Excel
    ],
)
def test_a_table_is_read_by_its_header(tmp_path: Path, header: str, row: str) -> None:
    caption = "a dog, 1, 2 and a cat"
    table = f"{header}\n{row.format(name='a.jpg', caption=caption)}\n\n"
    ids, _ = run(tmp_path, own(tmp_path, table, "a.jpg"))
    assert ids == ["a.jpg"]
    assert [text.strip() for text in captions_of(tmp_path)["a.jpg"]] == [caption]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("photo,words\na.jpg,a dog\n", "expected the header 'image,caption', found 'photo,words'"),
        ("a.jpg,a dog\n", "has no header, it begins with 'a.jpg,a dog'; add the line 'image,cap"),
        ('image,caption\na.jpg,x\na.jpg,"a dog\na.jpg,y"\n', "line 3: a quotation mark is not"),
        ('image,caption\na.jpg,"a" dog\n', "line 2: ',' expected after '\"'; inside quotation"),
        ("caption,image\na dog, a cat,a.jpg\n", "line 2: expected the 2 columns 'caption,image'"),
        ("image,caption\n,a dog\n", "line 2: the image's name is missing"),
        ("image,caption\na.jpg\n", "line 2: expected the 2 columns"),
    ],
)
def test_an_invalid_table_is_reported_with_the_line(
    tmp_path: Path, table: str, message: str
) -> None:
    assert message in error_of(tmp_path, table, "a.jpg")


@pytest.mark.parametrize(
    ("member", "named"),
    [
        ("Images\\a.jpg", "a.jpg"),
        ("Images/a.jpg", "Images/a.jpg"),
        ("Images/a.jpg", "Images\\a.jpg"),
        ("a.jpg", " a.jpg "),
        (unicodedata.normalize("NFD", "été.jpg"), unicodedata.normalize("NFC", "été.jpg")),
        (unicodedata.normalize("NFC", "été.jpg"), unicodedata.normalize("NFD", "été.jpg")),
    ],
)
def test_image_names_match_in_any_notation(tmp_path: Path, member: str, named: str) -> None:
    ids, captioned = run(tmp_path, own(tmp_path, f"image,caption\n{named},a dog\n", member))
    assert ids == captioned


def test_classic_mac_os_line_ends_are_read(tmp_path: Path) -> None:
    ids, captioned = run(
        tmp_path, own(tmp_path, "image,caption\ra.jpg,a dog\ra.jpg,a cat\r", "a.jpg")
    )
    assert ids == captioned
    assert len(captions_of(tmp_path)["a.jpg"]) == 2


def test_a_header_without_captions_is_reported(tmp_path: Path) -> None:
    assert "captions.txt' has no captions; add one line per caption" in error_of(
        tmp_path, "image,caption\n\n", "a.jpg"
    )


@pytest.mark.parametrize("name", ["été.jpg", "дом.jpg"])
def test_utf8_names_without_the_flag_are_read(tmp_path: Path, name: str) -> None:
    """macOS's Finder writes such zips."""
    archive = own(tmp_path, f"image,caption\n{name},a dog\n", name)
    content = bytearray(archive.read_bytes())
    for offset, signature in ((6, b"PK\x03\x04"), (8, b"PK\x01\x02")):
        begin = content.index(signature)
        content[begin + offset + 1] &= ~0x08
    archive.write_bytes(content)
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist()[0] != name
    ids, captioned = run(tmp_path, archive)
    assert ids == captioned == [unicodedata.normalize("NFC", name)]


@pytest.mark.parametrize(
    ("member", "named"),
    [("IMG_1.JPG", "img_1.jpg"), ("a.jpeg", "a.jpg"), ("a.jpg", "a"), ("my photo.jpg", "myphoto")],
)
def test_a_similar_name_is_suggested(tmp_path: Path, member: str, named: str) -> None:
    line = error_of(tmp_path, f"image,caption\n{named},a dog\n", member)
    assert "1 image that" in line
    assert f"{named!r} is named {member!r} there: use one name" in line


def test_missing_images_are_counted_and_the_first_ones_listed(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,a dog\n" for n in range(13))
    line = error_of(tmp_path, "image,caption\n" + rows, "0.jpg", "8.jpg")
    assert "11 images that" in line
    assert "lacks: '1.jpg', '2.jpg', '3.jpg'" in line
    assert "'11.jpg' and 1 more; add them" in line


def test_an_unsupported_format_is_not_reported_as_missing(tmp_path: Path) -> None:
    table = "image,caption\na.jpg,a dog\nb.HEIC,a cat\n"
    line = error_of(tmp_path, table, "a.jpg", **{"Images/b.HEIC": b"ftypheic"})
    assert "Images/b.HEIC is of an unsupported format (.HEIC); convert it to JPEG" in line


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jfif", "JPEG"), ("ppm", "PPM"), ("pgm", "PPM"), ("TIFF", "TIFF"), ("webp", "WEBP")],
)
def test_less_common_formats_are_read(tmp_path: Path, suffix: str, kind: str) -> None:
    name = f"a.{suffix}"
    archive = own(tmp_path, f"image,caption\n{name},a dog\n", **{name: jpeg(kind)})
    assert run(tmp_path, archive)[0] == [name]


def test_all_bad_images_are_reported_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{n:02}.jpg" for n in range(40)]
    bad = {"03.jpg": b"", "20.jpg": jpeg()[:-150], "39.jpg": b"<html>"}
    table = "image,caption\n" + "".join(f"{name},a dog\n" for name in names)
    line = error_of(tmp_path, table, *(name for name in names if name not in bad), **bad)
    assert line.startswith("3 of 40 images in")
    assert "cannot be used: '03.jpg', '20.jpg', '39.jpg'" in line
    assert "the image 03.jpg is empty" in caplog.text
    assert "the image 20.jpg cannot be decoded" in caplog.text
    assert "39.jpg is not an image" in caplog.text


def test_unused_text_files_are_listed(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"a.jpg": jpeg(), "notes.txt": "of 2024"})
    with pytest.raises(InputError, match=r"has no captions; .*, found only 'notes\.txt'"):
        run(tmp_path, archive, archive)
    packed = make_zip(tmp_path / "y.zip", {"a.jpg": jpeg(), "in/captions.zip": b"PK"})
    with pytest.raises(
        InputError, match=r"no files that may hold captions; name a file in download\.text"
    ):
        run(tmp_path, packed)


def test_an_archive_of_another_kind_is_reported_as_such(tmp_path: Path) -> None:
    packed = tmp_path / "images.rar"
    packed.write_bytes(b"Rar!" + bytes(99))
    with pytest.raises(InputError, match="an archive of a kind that is not read; pack its files"):
        run(tmp_path, packed)
    inner = own(tmp_path, "image,caption\na.jpg,a dog\n", "a.jpg")
    outer = make_zip(tmp_path / "outer.zip", {"own.zip": inner.read_bytes(), "Captions.TXT": ""})
    with pytest.raises(InputError, match=r"no images; .* found 'Captions.TXT', 'own\.zip'"):
        ImageArchive(outer)


CHINESE = ["一只狗在草地上奔跑。", "两个人在街上走路。", "一个男人在爬山。"]


@pytest.mark.parametrize(
    ("captions", "warned"),
    [
        (CHINESE, True),
        (["一 只 狗 在 草地 上 奔跑 。", "两 个 人 在 街上 走路 。"], False),
        (["สุนัขวิ่งอยู่บนสนามหญ้า", "เด็กกำลังเล่นทราย"], True),
        (["สุนัข วิ่ง อยู่ บน สนาม หญ้า", "เด็ก กำลัง เล่น ทราย"], False),
        (["a dog runs", "the donaudampfschifffahrtsgesellschaft"], False),
    ],
)
def test_sentences_without_spaces_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, captions: list[str], warned: bool
) -> None:
    rows = "".join(f"{n}.jpg,{captions[n % len(captions)]}\n" for n in range(30))
    names = [f"{n}.jpg" for n in range(30)]
    fractions = {"val_fraction": 0.3, "test_fraction": 0.3}
    prepare_text(tmp_path, {"captions.txt": "image,caption\n" + rows}, names, **fractions)
    assert ("put spaces between the words" in caplog.text) == warned


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("backslash", 12), ("finder", 12), ("path_in_captions", 12), ("space_in_csv", 12)),
        *(("header_other", 12), ("ppm", 13), ("chinese", 16)),
    ],
)
def test_cases_that_are_read(tmp_path: Path, name: str, count: int) -> None:
    ids, captioned = run(tmp_path, CASES / f"{name}.zip")
    assert len(ids) == count
    assert set(ids) == set(captioned)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heic", "IMG_0099.HEIC is of an unsupported format (.HEIC)"),
        ("missing_rows", "4 images that"),
        ("no_header", "has no header, it begins with 'IMG_0000.jpg,a dog runs on the grass'"),
        ("open_quote", "captions.txt, line 5: a quotation mark is not closed"),
    ],
)
def test_cases_that_are_rejected(
    tmp_path: Path, name: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(InputError) as error:
        run(tmp_path, CASES / f"{name}.zip")
    assert message in str(error.value)
