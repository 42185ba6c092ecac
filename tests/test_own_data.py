"""Other people's data: what their archives are like is read, or said in a line that helps."""

import io
import logging
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config.schema import DownloadConfig, PrepareConfig
from pipeline.images.archive import ImageArchive
from pipeline.runtime.errors import InputError
from pipeline.sources.flickr8k import TextArchive, read_text_archive
from pipeline.stages.download import download
from pipeline.stages.prepare import prepare
from tests.conftest import SHARED, make_zip

CASES = SHARED / "cases"
SHARES = PrepareConfig(val_fraction=0.3, test_fraction=0.3)


def jpeg(kind: str = "JPEG") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (9, 7), "teal").save(made, kind)
    return made.getvalue()


def take(folder: Path, images: Path, text: Path | None = None) -> tuple[list[str], TextArchive]:
    """What `download` puts in place: the ids of the images, and the captions."""
    config = DownloadConfig(
        images=str(images),
        images_md5=None,
        text=text and str(text),
        text_md5=None,
        retries=0,
        timeout=1.0,
    )
    out = folder / "data"
    download(out / "images.zip", out / "text.zip", config)
    with ImageArchive(out / "images.zip") as archive:
        return archive.ids, read_text_archive(out / "text.zip")


def own(folder: Path, table: str, *names: str, **more: bytes) -> Path:
    """One zip of images by these names and a captions.txt."""
    members: dict[str, bytes | str] = {name: jpeg() for name in names}
    return make_zip(folder / "own.zip", {**members, **more, "captions.txt": table})


def refused(folder: Path, table: str, *names: str, **more: bytes) -> str:
    with pytest.raises(InputError) as error:
        take(folder, own(folder, table, *names, **more))
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
        ("\ufeff\r\n,image,caption\r", '0,{name},"{caption}"\r'),  # by pandas and Excel
    ],
)
def test_a_table_is_read_by_its_header(tmp_path: Path, header: str, row: str) -> None:
    caption = "a dog, 1, 2 and a cat"
    table = f"{header}\n{row.format(name='a.jpg', caption=caption)}\n\n"
    ids, text = take(tmp_path, own(tmp_path, table, "a.jpg"))
    assert ids == ["a.jpg"]
    assert [one.strip() for one in text.captions["a.jpg"]] == [caption]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("photo,words\na.jpg,a dog\n", "expected the header 'image,caption', found 'photo,words'"),
        ("a.jpg,a dog\n", "has no header, it begins with 'a.jpg,a dog'; put the line 'image,cap"),
        ('image,caption\na.jpg,x\na.jpg,"a dog\na.jpg,y"\n', "line 3: a quotation mark opens and"),
        ('image,caption\na.jpg,"a" dog\n', "line 2: ',' expected after '\"'; inside quotation"),
        ("caption,image\na dog, a cat,a.jpg\n", "line 2: expected the 2 columns 'caption,image'"),
        ("image,caption\n,a dog\n", "line 2: no image is named"),
        ("image,caption\na.jpg\n", "line 2: expected the 2 columns"),
        ("image,caption\nx/a.jpg,dog\ny/a.jpg,cat\n", "line 3: 'y/a.jpg' is another image than"),
    ],
)
def test_a_table_that_cannot_be_read_is_said_with_the_line(
    tmp_path: Path, table: str, said: str
) -> None:
    assert said in refused(tmp_path, table, "a.jpg")


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
def test_names_meet_in_whatever_way_they_are_written(
    tmp_path: Path, member: str, named: str
) -> None:
    ids, text = take(tmp_path, own(tmp_path, f"image,caption\n{named},a dog\n", member))
    assert ids == list(text.captions)


def test_lines_may_end_as_an_old_mac_ends_them(tmp_path: Path) -> None:
    ids, text = take(tmp_path, own(tmp_path, "image,caption\ra.jpg,a dog\ra.jpg,a cat\r", "a.jpg"))
    assert ids == list(text.captions)
    assert len(text.captions["a.jpg"]) == 2


def test_a_header_without_captions_is_said(tmp_path: Path) -> None:
    assert "has a header and no captions" in refused(tmp_path, "image,caption\n\n", "a.jpg")


@pytest.mark.parametrize("name", ["été.jpg", "дом.jpg"])
def test_utf8_names_without_the_flag_are_read(tmp_path: Path, name: str) -> None:
    """As macOS's Finder zips them."""
    archive = own(tmp_path, f"image,caption\n{name},a dog\n", name)
    content = bytearray(archive.read_bytes())
    for place, mark in ((6, b"PK\x03\x04"), (8, b"PK\x01\x02")):
        begin = content.index(mark)
        content[begin + place + 1] &= ~0x08
    archive.write_bytes(content)
    with zipfile.ZipFile(archive) as broken:
        assert broken.namelist()[0] != name
    ids, text = take(tmp_path, archive)
    assert ids == list(text.captions) == [unicodedata.normalize("NFC", name)]


@pytest.mark.parametrize(
    ("member", "named"),
    [("IMG_1.JPG", "img_1.jpg"), ("a.jpeg", "a.jpg"), ("a.jpg", "a"), ("my photo.jpg", "myphoto")],
)
def test_a_name_that_is_almost_there_is_shown(tmp_path: Path, member: str, named: str) -> None:
    line = refused(tmp_path, f"image,caption\n{named},a dog\n", member)
    assert "needs 1 image that" in line
    assert f"{named!r} is called {member!r} there: call both the same" in line


def test_missing_images_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,a dog\n" for n in range(9))
    line = refused(tmp_path, "image,caption\n" + rows, "0.jpg", "8.jpg")
    assert "needs 7 images that" in line
    assert "lacks: '1.jpg', '2.jpg', '3.jpg', '4.jpg', '5.jpg' and 2 more" in line


def test_a_kind_that_is_not_read_is_not_called_missing(tmp_path: Path) -> None:
    table = "image,caption\na.jpg,a dog\nb.HEIC,a cat\n"
    line = refused(tmp_path, table, "a.jpg", **{"Images/b.HEIC": b"ftypheic"})
    assert "needs 1 image of a kind that is not read (.HEIC), which" in line
    assert "has: 'b.HEIC'; convert them to JPEG" in line


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jfif", "JPEG"), ("ppm", "PPM"), ("pgm", "PPM"), ("TIFF", "TIFF"), ("webp", "WEBP")],
)
def test_less_common_kinds_are_read(tmp_path: Path, suffix: str, kind: str) -> None:
    name = f"a.{suffix}"
    archive = own(tmp_path, f"image,caption\n{name},a dog\n", **{name: jpeg(kind)})
    assert take(tmp_path, archive)[0] == [name]


def test_all_bad_images_are_named_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{n:02}.jpg" for n in range(40)]
    bad = {"03.jpg": b"", "20.jpg": jpeg()[:-150], "39.jpg": b"<html>"}
    table = "image,caption\n" + "".join(f"{name},a dog\n" for name in names)
    line = refused(tmp_path, table, *(name for name in names if name not in bad), **bad)
    assert line.startswith("3 of 40 images in")
    assert "cannot be used: '03.jpg', '20.jpg', '39.jpg'" in line
    assert "the image 03.jpg is empty" in caplog.text
    assert "the image 20.jpg cannot be decoded" in caplog.text
    assert "39.jpg is no image" in caplog.text


def test_a_folder_and_a_loose_table_are_answered_with_the_command_that_zips_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "my photos").mkdir()
    archive = own(tmp_path, "image,caption\na.jpg,a dog\n", "a.jpg")
    with pytest.raises(InputError, match="is a folder; make a zip of it and name that: python -m"):
        take(tmp_path, tmp_path / "my photos")
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n")
    with pytest.raises(InputError, match=r"is no zip; .*python -m zipfile -c captions\.zip"):
        take(tmp_path, archive, table)


def test_text_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"a.jpg": jpeg(), "annotations.json": "{}"})
    with pytest.raises(InputError, match=r"holds no captions: .*; it has 'annotations\.json'"):
        take(tmp_path, archive, archive)


def test_an_archive_of_another_kind_is_called_so(tmp_path: Path) -> None:
    packed = tmp_path / "images.tar.gz"
    with tarfile.open(packed, "w:gz"):
        pass
    with pytest.raises(InputError, match="is an archive, but no zip; pack what it holds as one"):
        take(tmp_path, packed)
    inner = own(tmp_path, "image,caption\na.jpg,a dog\n", "a.jpg")
    outer = make_zip(tmp_path / "outer.zip", {"own.zip": inner.read_bytes(), "Captions.TXT": ""})
    with pytest.raises(InputError, match=r"captions\.txt: expected the header"):
        take(tmp_path, outer)
    with pytest.raises(InputError, match=r"no images; .* it has 'Captions.TXT', 'own\.zip'"):
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
def test_sentences_that_are_one_word_each_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, captions: list[str], warned: bool
) -> None:
    rows = "".join(f"{n}.jpg,{captions[n % len(captions)]}\n" for n in range(30))
    text = make_zip(tmp_path / "text.zip", {"captions.txt": "image,caption\n" + rows})
    prepare(text, tmp_path / "captions.csv", SHARES)
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
    ids, text = take(tmp_path, CASES / f"{name}.zip")
    assert len(ids) == count
    assert set(ids) == set(text.captions)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("heic", "1 image of a kind that is not read (.HEIC)"),
        ("missing_rows", "needs 4 images that"),
        ("no_header", "has no header, it begins with 'IMG_0000.jpg,a dog runs on the grass'"),
        ("open_quote", "captions.txt, line 5: a quotation mark opens"),
    ],
)
def test_cases_that_are_refused(
    tmp_path: Path, name: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(InputError) as error:
        take(tmp_path, CASES / f"{name}.zip")
    assert said in str(error.value)
